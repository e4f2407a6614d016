"""Whether a dataset's bytes are what was written, and its manifest and tables made again from the tars."""
