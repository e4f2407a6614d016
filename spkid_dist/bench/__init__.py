"""The command `spkid bench`: every stage of the way from feature files to scores, measured against this machine's limits.

Importing the package loads no torch: the command line reads its options from `spkid_dist.config.bench`.
"""
