"""Make what measurements need: synthetic corpora, and training steps without a training around them."""
