"""`spkid simulate`: what a cluster would make of a training, by arithmetic and the rates of this machine."""
