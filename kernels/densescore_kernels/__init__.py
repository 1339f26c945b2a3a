"""Power mean and response maps: one operation, three ways."""
