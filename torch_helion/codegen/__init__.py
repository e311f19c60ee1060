"""Tile IR to machine code: one folder per target, each importing ``ir`` and ``passes`` only."""
