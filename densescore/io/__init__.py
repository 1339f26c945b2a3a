"""Images, files and checkpoints."""
