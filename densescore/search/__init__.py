"""Search by example: an index of the patches of many images, and the places in it that look like an example."""
