"""Levels of image pyramids: resized, padded by reflection and normalized in one pass."""
