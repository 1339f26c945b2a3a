"""Work that outlives a process: a table of many images, one image by tiles."""
