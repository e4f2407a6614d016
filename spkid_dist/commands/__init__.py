"""The commands of `spkid` other than train, score and export, and the command line itself."""
