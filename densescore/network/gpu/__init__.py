"""Layers for a GPU that move each map once, and give the same values."""
