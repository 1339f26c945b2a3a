"""Replace the layers of a dense network by numerically equivalent, faster ones, for a CPU."""

import warnings
from typing import Literal

import torch
from torch import nn

from densescore.errors import DensescoreError, DensescoreWarning
from densescore.network.cpu import onednn, openvino
from densescore.network.cpu.fusion import FEWEST_CHANNELS, fuse, traced
from densescore.network.cpu.onednn import PackedLinear
from densescore.network.cpu.openvino import OpenVINOTrunk
from densescore.network.cpu.winograd import CookToomWindows, tiling_of
from densescore.network.dense_network import DenseNetwork
from densescore.network.windows import LinearWindows

Runtime = Literal["auto", "torch", "openvino", "compile"]


def speed_up(network: DenseNetwork, runtime: Runtime) -> str:
    """Fuse and pack the layers, slide FC6 by Cook–Toom, and have the trunk run by the runtime that suits it.

    The scores stay the same, up to rounding.

    Args:
        network: changed in place.
        runtime: for the trunk; ``"auto"`` takes `preferred_runtime`.

    Returns:
        What runs the trunk: ``"torch"`` or ``"openvino"``.

    Raises:
        DensescoreError: ``runtime="openvino"``, and OpenVINO is not installed or cannot convert the trunk.
    """
    # glibc hands blocks larger than any freed before back to the system at once, and each page of the next one costs
    # a fault: a tenth of the time of scoring. It keeps blocks up to this one's size from now on (32 MiB is its limit).
    torch.empty(31 * 2**20, dtype=torch.uint8)
    if onednn.available() and _dtype(network) in (torch.float32, torch.bfloat16):
        _fuse_all(network)
    chosen = preferred_runtime(network) if runtime == "auto" else runtime
    if chosen == "openvino":
        try:
            network.fast_trunk = OpenVINOTrunk(network.level_trunk, network.patch, _dtype(network))
        except DensescoreError as error:
            if runtime == "openvino":
                raise
            warnings.warn(f"torch runs the trunk: {error}", DensescoreWarning, stacklevel=3)
            return "torch"
    return chosen


def preferred_runtime(network: DenseNetwork) -> str:
    """``"openvino"`` for a trunk with narrow groups or depthwise convolutions where OpenVINO runs, else ``"torch"``.

    OpenVINO joins such convolutions with their neighbors, which torch cannot. Elsewhere neither always wins, and two
    runtimes in one process share the cores badly. The times behind this are in ``benchmarks/results/runtimes.md``.
    """
    narrow = any(
        isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.in_channels // layer.groups < FEWEST_CHANNELS
        for layer in network.trunk.modules()
    )
    return "openvino" if narrow and openvino.available(_dtype(network)) else "torch"


def _fuse_all(network: DenseNetwork) -> None:
    network.fast_trunk = fuse(traced(network.level_trunk))
    project = network.project
    if isinstance(project, LinearWindows):
        assert isinstance(project.linear, nn.Linear)
        height, width = project.window
        tiling = tiling_of(height, _dtype(network)) if height == width else None
        if tiling is not None:
            network.project = CookToomWindows(project, tiling)
            network.window_width = network.project.numbers
        else:
            project.linear = PackedLinear(project.linear.weight, project.linear.bias)
    network.embed = fuse(traced(network.embed))
    network.classifier = fuse(traced(network.classifier))


def _dtype(network: DenseNetwork) -> torch.dtype:
    return next(network.trunk.parameters()).dtype
