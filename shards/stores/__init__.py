"""Where a dataset's bytes come from: a local folder, a URL, a command, a cache."""
