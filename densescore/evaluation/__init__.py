"""Average precision and localization of a set's scores, as PASCAL VOC measures them."""
