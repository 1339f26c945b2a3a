"""``densescore-bench``: dense scoring against everything else that gives the same scores."""
