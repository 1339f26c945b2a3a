"""Put faster equals of a dense network's layers in their place, for a CPU."""

import statistics
import time
import warnings
from typing import Literal

import torch
from torch import nn

from densescore import onednn, openvino_trunk
from densescore.cook_toom import MOST_TAPS, CookToomWindows
from densescore.dense_network import DenseNetwork
from densescore.onednn import PackedLinear
from densescore.openvino_trunk import OpenVINOTrunk
from densescore.windows import LinearWindows
from densescore_kernels.errors import DensescoreError

Runtime = Literal["auto", "torch", "openvino"]


def speed_up(network: DenseNetwork, runtime: Runtime) -> str:
    """Pack the weights of linear layers, slide FC6 by Cook–Toom, and run the trunk by the faster runtime.

    The scores stay the same to rounding. Cook–Toom runs in float32 only: its transforms would lose too many of
    bfloat16's eight bits.

    Args:
        network: changed in place.
        runtime: for the trunk; see `DenseScorer`.

    Returns:
        What runs the trunk: ``"torch"`` or ``"openvino"``.
    """
    if onednn.available() and _dtype(network) in (torch.float32, torch.bfloat16):
        _speed_up_linears(network)
    if runtime == "torch" or (runtime == "auto" and not openvino_trunk.available(_dtype(network))):
        return "torch"
    try:
        candidate = OpenVINOTrunk(network.trunk, network.patch, _dtype(network))
    except DensescoreError as error:
        if runtime == "openvino":
            raise
        warnings.warn(f"torch runs the trunk: {error}", stacklevel=3)
        return "torch"
    # Two runtimes in one process share the cores badly, so a tie goes to the one that runs the rest.
    if runtime == "auto" and _seconds(candidate, network) > 0.8 * _seconds(network.trunk, network):
        return "torch"
    network.fast_trunk = candidate
    return "openvino"


def _speed_up_linears(network: DenseNetwork) -> None:
    project = network.project
    if isinstance(project, LinearWindows):
        assert isinstance(project.linear, nn.Linear)
        height, width = project.window
        if _dtype(network) == torch.float32 and height == width and 3 <= height <= MOST_TAPS:
            network.fast_project = CookToomWindows(project)
        else:
            project.linear = PackedLinear.of(project.linear)
    for part in (network.embed, network.classifier):
        for name, layer in list(part.named_modules()):
            if isinstance(layer, nn.Linear) and name:
                part.set_submodule(name, PackedLinear.of(layer))


def _dtype(network: DenseNetwork) -> torch.dtype:
    return next(network.trunk.parameters()).dtype


@torch.inference_mode()
def _seconds(trunk: nn.Module, network: DenseNetwork) -> float:
    """Median time of the trunk on a level of 2P × 2P pixels: λ = 2 of a square image."""
    side = 2 * network.patch
    pixels = torch.zeros(1, 3, side, side, dtype=_dtype(network)).to(memory_format=torch.channels_last)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        trunk(pixels)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one warms up
