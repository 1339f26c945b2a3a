"""Score every patch of an image at every scale in one fully convolutional pass.

An implementation of Oquab, Bottou, Laptev, Sivic, "Learning and Transferring Mid-Level Image Representations using
Convolutional Neural Networks" (CVPR 2014).

``import densescore`` loads next to nothing: each public name is imported when it is first used.

Example:
    >>> import densescore, skimage
    >>> densescore.classify(skimage.data.chelsea(), scales=(1, 1.3)).top(1)[0].label
    'Egyptian cat'
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the public names: __init__.pyi
