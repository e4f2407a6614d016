"""Speaker identification trained at memory speed: streaming, training and scoring of sharded features."""
