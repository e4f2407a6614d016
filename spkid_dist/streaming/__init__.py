"""Behind `spkid_dist.dataset`: from the order of an epoch to batches of windows."""
