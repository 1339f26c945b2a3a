"""Readers of data sets: images with boxes, or with labels alone."""
