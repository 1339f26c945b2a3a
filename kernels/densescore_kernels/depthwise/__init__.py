"""Depthwise convolution over maps that share canvases."""
