"""Check that a dataset's bytes are what was written, and rebuild its manifest and tables from the tars."""
