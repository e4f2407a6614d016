"""Behind `spkid_dist.train`: the parts of a training."""
