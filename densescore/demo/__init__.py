"""A page to look at, and an HTTP call of the same, over one bounded service."""
