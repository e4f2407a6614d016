"""What measurements stand on: corpora to measure with, and training steps without a training around them."""
