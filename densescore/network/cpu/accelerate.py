"""A dense network with numerically equal, faster layers for a CPU."""

import copy
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from densescore.errors import DensescoreError, DensescoreWarning, reason_of
from densescore.network.cpu import onednn, openvino
from densescore.network.cpu.form_cache import FormCache
from densescore.network.cpu.fusion import MIN_CHANNELS, fuse
from densescore.network.cpu.onednn import PackedLinear
from densescore.network.cpu.openvino import OpenVINOTrunk
from densescore.network.cpu.winograd import CookToomWindows, tiling_of
from densescore.network.dense_network import DenseNetwork, LinearWindows, replaced

Runtime = Literal["auto", "torch", "openvino", "compile"]

_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.02}
"""Largest deviation of a faster form from torch's own layers, as a share of the largest output."""


def accelerated(network: DenseNetwork, runtime: Runtime, cache: FormCache | None = None) -> DenseNetwork:
    """The network with fused and packed layers, FC6 by Cook–Toom, and its trunk run by ``.runtime``.

    Forms new to the cache are run on two levels; one whose numbers are not torch's is left out, with a warning.
    """
    cache = cache or FormCache(None)
    # glibc hands blocks larger than any freed before back to the system at once, and each page of the next one costs
    # a fault: a tenth of the time of scoring. It keeps blocks up to this one's size from now on (32 MiB is its limit).
    torch.empty(31 * 2**20, dtype=torch.uint8)

    # Faster forms: layers fused and packed, then the trunk's runtime
    dtype = _dtype(network)
    forms: dict[str, Callable[[bytes | None], dict[str, Any]]] = {}  # of their data in the cache
    if onednn.available(dtype):
        forms["oneDNN"] = lambda data: _fused(network)
    if runtime == "openvino" or (runtime == "auto" and preferred_runtime(network) == "openvino"):
        forms["OpenVINO"] = lambda data: {
            "fast_trunk": OpenVINOTrunk(network.level_trunk, network.patch, dtype, data), "runtime": "openvino"
        }  # fmt: skip

    # Keep those that give torch's numbers
    faster, check = network, None
    for name, fields in forms.items():
        try:
            data = cache.read(name)
            form = replaced(faster, **fields(data))
            if data is None:
                check = check or _Check(network)
                check(form, name)
                cache.write(name, form.fast_trunk.export() if isinstance(form.fast_trunk, OpenVINOTrunk) else b"")
        except Exception as error:  # each runtime has its own kinds
            if runtime == "openvino" and name == "OpenVINO":
                raise error if isinstance(error, DensescoreError) else DensescoreError(reason_of(error)) from error
            warnings.warn(f"torch runs the trunk: {reason_of(error)}", DensescoreWarning, stacklevel=3)
        else:
            faster = form
    return faster


class _Check:
    """Compares faster forms of a network with its own layers, on levels of two sizes."""

    @torch.inference_mode()
    def __init__(self, network: DenseNetwork) -> None:
        self._dtype, self._rounding = _dtype(network), 0.0
        stride, generator = network.stride * network.phases, torch.Generator().manual_seed(0)
        sizes = [(network.patch + down * stride, network.patch + across * stride) for down, across in ((1, 2), (3, 0))]
        levels = [3 * torch.randn(1, 3, *size, generator=generator) for size in sizes]
        self._levels = [level.to(self._dtype).contiguous(memory_format=torch.channels_last) for level in levels]
        self._maps = [network.level_trunk(level) for level in self._levels]
        self._blocks = [block for maps in self._maps for block in maps.split(1)]
        self._features = network.embed_blocks(self._blocks)
        self._logits = network.classifier(self._features)
        if self._dtype != torch.float32:  # torch rounds activations; folding rounds weights once more
            exact = copy.deepcopy(network.level_trunk).float()
            maps = [exact(level.float()) for level in self._levels]
            self._rounding, self._maps = _deviation(self._maps, maps), maps
            for weight in exact.parameters():
                noise = torch.rand(weight.shape, generator=generator) - 0.5
                weight.mul_(1 + torch.finfo(self._dtype).eps * noise)
            self._rounding += _deviation([exact(level.float()) for level in self._levels], maps)

    @torch.inference_mode()
    def __call__(self, form: DenseNetwork, name: str) -> None:
        """DensescoreError if a form's maps, features or logits deviate by more than rounding does."""
        features = form.embed_blocks(self._blocks)
        trunk = _deviation([form.fast_trunk(level) for level in self._levels], self._maps)
        head = _deviation([features, form.classifier(self._features)], [self._features, self._logits])
        limit = _ROUNDING[self._dtype]
        if not (trunk <= limit + 2 * self._rounding and head <= limit):
            raise DensescoreError(f"{name}'s numbers deviate from torch's by {max(trunk, head):.2%}")


def _deviation(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference of two tensors, as a share of the largest number expected."""
    pairs = [[torch.nan_to_num(x.float(), 0, 0, 0) for x in pair] for pair in zip(actual, expected, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def preferred_runtime(network: DenseNetwork) -> str:
    """``"openvino"`` for a trunk with narrow groups or depthwise convolutions where OpenVINO runs, else ``"torch"``.

    OpenVINO joins such convolutions with their neighbors. Times are in ``benchmarks/results/runtimes.md``.
    """
    narrow = any(
        isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.in_channels // layer.groups < MIN_CHANNELS
        for layer in network.trunk.modules()
    )
    return "openvino" if narrow and openvino.available(_dtype(network)) else "torch"


def _fused(network: DenseNetwork) -> dict[str, Any]:
    """Fields of a network with its layers fused and packed."""
    fields: dict[str, Any] = {
        "fast_trunk": fuse(network.level_trunk),
        "embed": fuse(network.embed),
        "classifier": fuse(network.classifier),
    }
    project = network.project
    if isinstance(project, LinearWindows):
        assert isinstance(project.linear, nn.Linear)
        height, width = project.window
        tiling = tiling_of(height, _dtype(network)) if height == width else None
        if tiling is not None:
            windows = CookToomWindows(project, tiling)
            return fields | {"project": windows, "window_width": windows.numbers}
        packed = PackedLinear(project.linear.weight, project.linear.bias)
        fields["project"] = LinearWindows(project.window, packed)
    return fields


def _dtype(network: DenseNetwork) -> torch.dtype:
    return next(network.trunk.parameters()).dtype
