"""Transfer: patch labels, features on disk, training of the adaptation layer."""
