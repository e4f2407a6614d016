"""Read a dataset's bytes from a local folder, a URL, a command, or a cache."""
