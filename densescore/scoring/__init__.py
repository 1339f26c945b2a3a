"""From an image to its scores: the dense engine and its reference, one image or a stream."""
