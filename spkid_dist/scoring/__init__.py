"""Behind `spkid_dist.score`: from utterances to decisions, figures and pictures."""
