"""A classifier as a dense network, or patch by patch; `make_network` is the door."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

    from densescore.network.crops import PatchNetwork


def make_network(module: "nn.Module", patch: int, context: Literal["image", "patch"] = "image") -> "PatchNetwork":
    """A classifier of ``[N, 3, patch, patch]`` pixels as a `DenseNetwork`; its weights are shared.

    Where it has no dense form, ``context="patch"`` gives a `CropNetwork`, and ``"image"`` raises NotConvolutionalError.
    """
    from densescore.errors import DensescoreError
    from densescore.network.crops import to_crops
    from densescore.network.surgery import to_dense

    try:
        return to_dense(module, patch)
    except DensescoreError:
        if context == "image":
            raise
    return to_crops(module, patch)
