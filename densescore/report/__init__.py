"""A report: one page with many images, ranked per class, their maps and boxes; it opens from the disk."""
