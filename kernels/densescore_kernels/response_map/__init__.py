"""Mean scores of the patches over each pixel."""
