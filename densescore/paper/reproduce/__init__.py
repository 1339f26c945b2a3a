"""The paper's Tables 1 to 3, from ImageNet and PASCAL VOC on disk to numbers beside the paper's own."""
