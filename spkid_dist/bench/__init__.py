"""The command `spkid bench`: measure every stage from feature files to scores against this machine's limits.

Importing the package loads no torch: the command line reads its options from `spkid_dist.config.bench`.
"""
