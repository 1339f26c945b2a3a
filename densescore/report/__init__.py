"""A report: one page of many images, ranked per class, with their maps and boxes; it opens from the disk."""
