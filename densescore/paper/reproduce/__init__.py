"""The paper's Tables 1 to 3, measured from ImageNet and PASCAL VOC on disk, next to the paper's numbers."""
