"""Replace the layers of a dense network by numerically equivalent, faster ones, for a CPU."""

import time
import warnings
from typing import Literal

import torch
from torch import nn

from densescore.errors import DensescoreError
from densescore.network.cpu import onednn, openvino
from densescore.network.cpu.fusion import fuse, traced
from densescore.network.cpu.onednn import PackedLinear
from densescore.network.cpu.openvino import OpenVINOTrunk
from densescore.network.cpu.winograd import CookToomWindows, tiling_of
from densescore.network.dense_network import DenseNetwork
from densescore.network.windows import LinearWindows

Runtime = Literal["auto", "torch", "openvino"]


def speed_up(network: DenseNetwork, runtime: Runtime) -> str:
    """Fuse and pack the layers, compute FC6 by Cook–Toom, and run the trunk by the faster runtime.

    The scores stay the same, up to rounding.

    Args:
        network: changed in place.
        runtime: for the trunk; see `DenseScorer`.

    Returns:
        What runs the trunk: ``"torch"`` or ``"openvino"``.
    """
    # glibc hands blocks larger than any freed before back to the system at once, and each page of the next one costs
    # a fault: a tenth of the time of scoring. It keeps blocks up to this one's size from now on (32 MiB is its limit).
    torch.empty(31 * 2**20, dtype=torch.uint8)
    if onednn.available() and _dtype(network) in (torch.float32, torch.bfloat16):
        _fuse_all(network)
    if runtime == "torch" or (runtime == "auto" and not openvino.available(_dtype(network))):
        return "torch"
    try:
        candidate = OpenVINOTrunk(network.level_trunk, network.patch, _dtype(network))
    except DensescoreError as error:
        if runtime == "openvino":
            raise
        warnings.warn(f"torch runs the trunk: {error}", stacklevel=3)
        return "torch"
    # Two runtimes in one process share the cores badly, so a tie goes to the one that runs the rest.
    if runtime == "auto" and _time_ratio(candidate, network.fast_trunk, network) > 0.8:
        return "torch"
    network.fast_trunk = candidate
    return "openvino"


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


@torch.inference_mode()
def _time_ratio(candidate: nn.Module, trunk: nn.Module, network: DenseNetwork) -> float:
    """The candidate's time over the trunk's on a level of 3P × 3P pixels, in turn, the best of three each."""
    side = 3 * network.patch
    pixels = torch.zeros(1, 3, side, side, dtype=_dtype(network)).to(memory_format=torch.channels_last)
    best = [float("inf"), float("inf")]
    for _ in range(4):  # the first one warms up
        for index, runs in enumerate((candidate, trunk)):
            start = time.perf_counter()
            runs(pixels)
            best[index] = min(best[index], time.perf_counter() - start)
    return best[0] / best[1]
