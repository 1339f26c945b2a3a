"""Padding is read off layers and functions alike."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from densescore.network.graph import note_shapes, padding_of, trace


class Calls(nn.Module):
    """A function of the pixels, with a kernel at hand."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(3, 3, 3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


@pytest.mark.parametrize(
    ("module", "padding"),
    [
        (nn.Conv2d(3, 2, 3, padding=(1, 2)), (2, 2, 1, 1, 0)),
        (nn.Conv2d(3, 2, 4, padding="same", dilation=3), (4, 5, 4, 5, 0)),
        (nn.Conv2d(3, 2, 3, padding="valid"), (0, 0, 0, 0, 0)),
        (Conv2dSame(3, 2, 3, stride=2), (0, 1, 0, 1, 0)),  # of 16 pixels
        (nn.MaxPool2d(3, 2, 1), (1, 1, 1, 1, -math.inf)),
        (nn.AvgPool2d(2), (0, 0, 0, 0, 0)),
        (nn.ZeroPad2d((1, 2, 3, 4)), (1, 2, 3, 4, 0)),
        (nn.ReLU(), (0, 0, 0, 0, 0)),
        (Calls(lambda x, w: F.conv2d(x, w, padding=(1, 2))), (2, 2, 1, 1, 0)),
        (Calls(lambda x, w: F.conv2d(x, w, padding="same", dilation=2)), (4, 4, 2, 2, 0)),
        (Calls(lambda x, w: F.conv2d(x, w, None, 1, "valid")), (0, 0, 0, 0, 0)),
        (Calls(lambda x, w: F.max_pool2d(x, 3, 2, 1)), (1, 1, 1, 1, -math.inf)),
        (Calls(lambda x, w: F.avg_pool2d(x, 3, padding=1)), (1, 1, 1, 1, 0)),
        (Calls(lambda x, w: F.pad(x, (1, 2, 3, 4), value=2.0)), (1, 2, 3, 4, 2)),
        (Calls(lambda x, w: F.pad(x, pad=(1, 2))), (1, 2, 0, 0, 0)),
    ],
    ids=lambda value: None if isinstance(value, Calls) else str(value),
)
def test_padding(module: nn.Module, padding: tuple[float, ...]) -> None:
    graph = trace(nn.Sequential(nn.Identity(), module))
    with torch.no_grad():
        note_shapes(graph, 16)
    assert padding in [tuple(padding_of(graph, node)) for node in graph.graph.nodes]
    assert sum(any(padding_of(graph, node).sides) for node in graph.graph.nodes) == any(padding[:4])
