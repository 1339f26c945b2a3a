"""Refuse numbers that are not finite where they arise: a clamp further on turns NaN into a plausible value."""

import torch
from torch import Tensor, nn

from densescore.errors import DensescoreError


def check_weights(network: nn.Module, name: str) -> None:
    """Refuse weights that are NaN or infinite, and batch norms whose variance is negative.

    Args:
        network: in the dtype in which it runs, to whose range weights of another may not fit.
        name: of the network, for the message.

    Raises:
        DensescoreError: names the first such weight.
    """
    statistics = {
        f"{at}.{kind}": getattr(layer, kind)
        for at, layer in network.named_modules()
        for kind in ("running_mean", "running_var")
        if isinstance(getattr(layer, kind, None), Tensor)
    }
    for at, tensor in [*network.named_parameters(), *statistics.items()]:
        if not _is_finite(tensor.detach()):
            raise DensescoreError(f"{name}: the weights {at} hold values that are not finite in {tensor.dtype}")
        if at.endswith("running_var") and tensor.numel() and tensor.min() < 0:
            raise DensescoreError(f"{name}: the weights {at} hold a negative variance")


def check_outputs(outputs: Tensor, what: str) -> Tensor:
    """Refuse outputs that are NaN or infinite.

    Args:
        outputs: any shape; integers are always finite.
        what: they are, for the message.

    Raises:
        DensescoreError: says what is not finite, and in which dtype.
    """
    if not _is_finite(outputs):
        raise DensescoreError(f"{what} in {outputs.dtype} are not finite; try another dtype")
    return outputs


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.isfinite(torch.stack(tensor.aminmax())).all())  # NaN is both
