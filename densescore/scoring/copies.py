"""Copies of a scorer: with other scales or another network, and in another process."""

import copy
import hashlib
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from densescore.errors import DensescoreError
from densescore.geometry import Pyramid
from densescore.scoring.arguments import Numbers, as_tuple
from densescore.scoring.crop_network import PatchNetwork


class Copies:
    """The part of `DenseScorer` that makes changed copies; they share what is not changed."""

    scales: tuple[float, ...]
    patch_sizes: tuple[float, ...] | None
    network: PatchNetwork
    weights_digest: str
    device: torch.device
    runtime: str
    _arguments: tuple[tuple[Any, ...], dict[str, Any]] | None

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Keep the constructor's arguments, with which a pickle makes the scorer again."""
        made = super().__new__(cls)
        travels = not any(isinstance(value, nn.Module) for value in (*args, *options.values()))
        made._arguments = (args, options) if travels else None  # a module would keep its weights in memory
        return made

    def fingerprint(self) -> dict[str, Any]:
        """What its results follow from."""
        raise NotImplementedError

    def pyramid(self, height: int, width: int) -> Pyramid:
        """The patches that an image of this size has."""
        raise NotImplementedError

    def with_scales(self, scales: Numbers | None = None, *, patch_sizes: Numbers | None = None) -> Self:
        """A scorer with other scales and the same network.

        Args:
            scales: as for the constructor.
            patch_sizes: as for the constructor. Exactly one of the two must be given.

        Raises:
            DensescoreError: not exactly one is given, or it is not valid.

        Example:
            >>> from densescore import DenseScorer
            >>> len(DenseScorer("lite0").with_scales((1,)).pyramid(224, 224))
            1
        """
        if (scales is None) == (patch_sizes is None):
            raise DensescoreError(f"with_scales takes scales or patch_sizes, got {scales} and {patch_sizes}")
        changed = copy.copy(self)
        changed.scales = self.scales if scales is None else as_tuple("scales", scales)
        changed.patch_sizes = as_tuple("patch_sizes", patch_sizes)
        changed.pyramid(224, 224)  # checks them
        if self._arguments is not None:
            args, options = self._arguments
            changed._arguments = args, {**options, "scales": scales, "patch_sizes": patch_sizes}
        return changed

    def with_network(self, network: PatchNetwork, change: str) -> Self:
        """A scorer with another network and the same preprocessing and scales.

        Args:
            network: on the scorer's device and in its dtype, with the same patch and stride.
            change: says in what it differs; the digest of the weights depends on it.
        """
        changed = copy.copy(self)
        changed.network, changed._arguments = network, None
        changed.weights_digest = hashlib.sha256(f"{change} of {self.weights_digest}".encode()).hexdigest()
        return changed

    def __copy__(self) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Shares the network, which nothing changes."""
        return copy.copy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the constructor's arguments: packed weights cannot leave their process.

        Raises:
            DensescoreError: there are no arguments that could make the same scorer again.
        """
        if self._arguments is None or self._arguments[1].get("weights", "default") is None:
            raise DensescoreError(
                "a scorer is pickled as the arguments that make it again, which a module or random weights are not: "
                "make this one in the process that uses it"
            )
        args, options = self._arguments
        pinned = {**options, "device": str(self.device), "runtime": self.runtime}
        return _make_again, (type(self), args, pinned, self.fingerprint())


def _make_again(kind: Any, args: tuple[Any, ...], options: dict[str, Any], expected: dict[str, Any]) -> Any:
    scorer = kind(*args, **options)
    changed = [name for name, value in scorer.fingerprint().items() if value != expected[name]]
    if changed:
        raise DensescoreError(f"the pickled scorer cannot be made again: here it has another {', '.join(changed)}")
    return scorer
