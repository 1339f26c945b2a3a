"""The CUDA path without a GPU."""
