"""Source pre-training: which ImageNet classes, and the network that learns to tell them apart."""
