"""This process and its machine: CPUs, memory, signals, and what a call leaves as it was found."""
