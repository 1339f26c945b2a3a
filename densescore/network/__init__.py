"""A classifier as a dense network: the surgery, the parts, finer strides, tiles, export."""
