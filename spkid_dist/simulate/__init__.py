"""The command `spkid simulate`: predict a training on a cluster, by arithmetic and the rates of this machine."""
