"""A classifier in four parts that can run over a whole image; `densescore.network.surgery` makes it."""

import copy
import threading
from collections.abc import Sequence
from contextlib import ContextDecorator
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from typing_extensions import Self

from densescore.errors import DensescoreError, reason_of
from densescore.network.graph import peak_bytes
from densescore.network.locality import reach
from densescore.network.mosaic import MosaicTrunk, find_mosaic
from densescore.network.strides import with_phases

Network = TypeVar("Network", bound=nn.Module)

Blocks = Sequence[Tensor]
"""Blocks of the maps of several levels: each ``[1, C, rows + h - 1, cols + w - 1]`` holds rows × cols windows."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Windows(nn.Module):
    """Cuts windows out of maps, in place of a flatten or a global pool: blocks → one row per cell, ``[cells, …]``."""

    def __init__(self, window: tuple[int, int]) -> None:
        super().__init__()
        self.window = window

    def grid(self, maps: Tensor) -> Tensor:
        """Windows by position, as `rows` takes them: ``[N, C, rows + h - 1, …]`` → ``[N, rows, cols, …]``."""
        raise NotImplementedError

    def rows(self, windows: Tensor) -> Tensor:
        """``[cells, …]`` of `grid` → one row per cell."""
        raise NotImplementedError

    def forward(self, blocks: Blocks) -> Tensor:
        """The row of each window, cell by cell."""
        return self.rows(torch.cat([self.grid(block).flatten(0, 2) for block in blocks]))


class AveragedWindows(Windows):
    """Global average pooling of each window: blocks → ``[cells, *shape]``, shape ``(C,)`` or ``(C, 1, 1)``."""

    def __init__(self, window: tuple[int, int], shape: tuple[int, ...]) -> None:
        super().__init__(window)
        self.shape = shape

    def grid(self, maps: Tensor) -> Tensor:
        """``[N, rows, cols, C]``."""
        return F.avg_pool2d(maps, self.window, stride=1).permute(0, 2, 3, 1)

    def rows(self, windows: Tensor) -> Tensor:
        """``[cells, C]`` → ``[cells, *shape]``."""
        return windows.reshape(-1, *self.shape)


class FlattenedWindows(Windows):
    """Flattening of each window: blocks → ``[cells, C·h·w]``."""

    def grid(self, maps: Tensor) -> Tensor:
        """``[N, rows, cols, C, h, w]``, a view."""
        height, width = self.window
        return maps.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)

    def rows(self, windows: Tensor) -> Tensor:
        """Each window as the classifier's linear layer reads it."""
        return windows.flatten(1)


class LinearWindows(FlattenedWindows):
    """Flattening and FC6 of each window: blocks → ``[cells, width of FC6]``, in one matrix product."""

    def __init__(self, window: tuple[int, int], linear: nn.Module) -> None:
        super().__init__(window)
        self.linear = linear

    def rows(self, windows: Tensor) -> Tensor:
        """FC6 of each window."""
        return self.linear(super().rows(windows))


class DenseNetwork(nn.Module):
    """A classifier in four parts that can run over a whole image; changes make new networks that share its weights.

    ``trunk → project → embed`` give the features of a patch, ``classifier`` its logits.
    """

    contexts = ("image", "patch")  # beyond its border, a patch sees the real image, or nothing (a crop)

    def __init__(
        self,
        trunk: nn.Module,  # [1, 3, P + nS, P + mS] pixels → [1, C, h + n, w + m] feature map
        project: nn.Module,  # blocks of maps → a row per window: its average, its flattened values, or FC6's outputs
        embed: nn.Module,  # rows → [N, D] features, in the form that the classifier takes
        classifier: nn.Module,  # [N, D] features → [N, classes] logits
        *,
        patch: int,  # P, side of the network's input in pixels
        stride: int,  # S, pixels of input from one cell to the next
        window: tuple[int, int],  # (h, w) of one patch's feature map
        window_width: int,  # numbers that one window takes while it is projected
        feature_width: int,  # D: FC7's width, or the pooled channels'
        classes: int,
        level_context: tuple[str, ...] = (),  # layers that average over all that the trunk sees: cells share a level's
    ) -> None:
        super().__init__()
        self.trunk, self.project, self.embed, self.classifier = trunk, project, embed, classifier
        self.patch, self.stride, self.window = patch, stride, window
        self.window_width, self.feature_width, self.classes = window_width, feature_width, classes
        self.level_context = level_context
        self.level_trunk = trunk  # over levels: [1, 3, …] → [phases², C, …]; another module in a network made finer
        self.fast_trunk = trunk  # computes `level_trunk`, or a numerically equal, faster module; see `cpu.accelerate`
        self.phases = 1  # cells per position of the map along each axis; more in a network made finer
        self.to_features: nn.Module = nn.Identity()  # the classifier's input are the features, unlike a CropNetwork's
        self.runtime = "torch"  # runs `fast_trunk`

    @property
    def below_classifier(self) -> tuple[nn.Module, ...]:
        """The layers below the features."""
        return self.trunk, self.project, self.embed

    def with_classifier(self, head: nn.Module, features: int, classes: int) -> Self:
        """The network with an adaptation head (FCa, FCb) in place of FC8: ``[N, features]`` → ``[N, classes]``."""
        check_head(features, self.feature_width)
        return replaced(self, classifier=head, classes=classes)

    def with_stride(self, stride: int) -> Self:
        """The network with cells `stride` pixels apart, by offset pooling (see `strides`). Crops are scored as before.

        Raises DensescoreError where `stride` does not divide the network's, or a layer cannot be run in phases.
        """
        assert isinstance(self.trunk, fx.GraphModule)
        trunk = with_phases(self.trunk, self.patch, self.stride, stride)
        return replaced(self, level_trunk=trunk, fast_trunk=trunk, stride=stride, phases=self.stride // stride)

    @cached_property
    def reach(self) -> tuple[int, int]:
        """Receptive-field overhang of a cell, in strides of the trunk (before, after); see `locality.reach`."""
        return reach(self.level_trunk, self.patch, self.stride * self.phases, self.window)

    @cached_property
    def bytes_per_pixel(self) -> float:
        """Peak memory of the trunk in bytes per pixel of a level."""
        assert isinstance(self.level_trunk, fx.GraphModule)
        return peak_bytes(self.level_trunk, self.patch) / self.patch**2

    @cached_property
    def mosaic(self) -> MosaicTrunk | None:
        """The trunk over several levels on a canvas, or None where they would see each other."""
        if self.level_context or self.phases > 1 or not isinstance(self.trunk, fx.GraphModule):
            return None
        return find_mosaic(self.trunk, self.patch, self.stride)

    def block(self, feature_map: Tensor, rows: range, cols: range) -> Tensor:
        """The part of a level's map that a block of its cells sees: ``[1, C, rows + h - 1, cols + w - 1]``."""
        height, width = self.window
        return feature_map[:, :, rows.start : rows.stop + height - 1, cols.start : cols.stop + width - 1]

    def embed_blocks(self, blocks: Blocks) -> Tensor:
        """Features of all cells of some blocks, in order: ``[cells, D]``."""
        return self.embed(self.project(blocks))

    def windows(self, maps: Tensor) -> Tensor:
        """The windows of maps ``[N, C, …]``, not yet embedded: ``[N, rows, cols, …]``."""
        return self._project.grid(maps)

    def embed_windows(self, windows: Tensor) -> Tensor:
        """Features of some of `windows`: ``[cells, …]`` → ``[cells, D]``."""
        return self.embed(self._project.rows(windows))

    @property
    def _project(self) -> Windows:
        assert isinstance(self.project, Windows)  # a CPU's faster layers take blocks
        return self.project

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Features of crops, as the original network has them: ``[N, 3, P, P]`` → ``[N, D]``."""
        return self.embed(self.project(self.trunk(crops).split(1)))

    def forward(self, crops: Tensor) -> Tensor:
        """Score crops as the original network does: ``[N, 3, P, P]`` → ``[N, classes]`` logits."""
        return self.classifier(self.embed_crops(crops))


def replaced(network: Network, **fields: Any) -> Network:
    """A copy of a network with other fields, as by `dataclasses.replace`; modules and weights are shared."""
    copied = copy.copy(network)
    copied._modules = dict(network._modules)
    for name in list(vars(copied)):
        if isinstance(getattr(type(copied), name, None), cached_property):
            del vars(copied)[name]  # computed from the old fields
    for name, value in fields.items():
        setattr(copied, name, value)
    return copied


def check_head(features: int, width: int) -> None:
    """Raise unless a head takes as many features as a network gives."""
    if features != width:
        raise DensescoreError(f"the head takes {features} features, but the network gives {width}")


def find_device(device: str | torch.device) -> torch.device:
    """A usable device; ``"auto"`` is a CUDA device if there is one, else Apple's GPU, else the CPU."""
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        usable = torch.device(device)
        if usable.type not in ("cpu", "cuda", "mps"):
            raise DensescoreError(f"device {device!r} cannot be used: densescore runs on 'cpu', 'cuda' and 'mps' only")
        if usable.type == "mps" and not torch.backends.mps.is_available():
            raise DensescoreError(f"device {device!r} cannot be used: this machine has no Apple GPU that torch can use")
        torch.empty(1, device=usable)
    except (RuntimeError, AssertionError) as error:
        raise DensescoreError(f"device {device!r} cannot be used: {reason_of(error)}") from error
    return usable


def find_dtype(dtype: str | torch.dtype, network: nn.Module, device: torch.device) -> torch.dtype:
    """A dtype that the device can compute in; ``"auto"`` is that of the network's parameters."""
    if dtype == "auto":
        return next(network.parameters()).dtype
    usable = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if usable is None or usable not in DTYPES.values():
        raise DensescoreError(f"dtype must be 'auto', {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    if usable == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise DensescoreError(f"dtype 'bfloat16' is not supported by {torch.cuda.get_device_name(device)}")
    return usable


class _WholeFloat32(ContextDecorator):
    """Convolutions in float32 while any thread is inside: by default cuDNN rounds their factors to TF32, 1e-3 off."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, ""
        self._cudnn: Any = torch.backends.cudnn

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = self._cudnn.conv.fp32_precision
                self._cudnn.conv.fp32_precision = "ieee"
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._cudnn.conv.fp32_precision = self._before


whole_float32 = _WholeFloat32()


def to_channels_last(network: Network) -> Network:
    """Lay the weights of convolutions out with their channels last, in place.

    ``network.to(memory_format=torch.channels_last)`` refuses parameters of five dimensions.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network
