"""Passes over the tile IR: kernel in, kernel out, one pass per file, joined in `pipeline.py`."""
