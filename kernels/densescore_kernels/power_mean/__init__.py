"""Means of powers of patch scores."""
