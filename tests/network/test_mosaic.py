"""Levels on a canvas have the maps that they have alone, for any layers; else there is no canvas."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from densescore.models.registry import load_classifier
from densescore.network.mosaic import MosaicTrunk, pack
from densescore.network.surgery import to_dense

grids = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 30)), min_size=1, max_size=40)


@given(grids, st.integers(1, 9), st.integers(1, 400))
def test_levels_on_canvases_keep_their_distance(grids: list[tuple[int, int]], spare: int, area: int) -> None:
    canvases = pack(grids, spare, area)
    assert sorted(place.level for canvas in canvases for place in canvas.places) == list(range(len(grids)))
    for canvas in canvases:
        taken = torch.zeros(canvas.rows + spare, canvas.cols + spare)
        for level, row, col in canvas.places:
            rows, cols = grids[level]
            assert row + rows <= canvas.rows
            assert col + cols <= canvas.cols
            taken[row : row + rows - 1 + spare, col : col + cols - 1 + spare] += 1
        assert taken.max() == 1
        assert len(canvas.places) == 1 or (canvas.rows - 1 + spare) * (canvas.cols - 1 + spare) <= area


def test_many_levels_fill_few_canvases() -> None:
    levels = [(rows, cols) for rows in range(1, 22, 3) for cols in (rows + 5, rows + 7)] * 4
    (canvas,) = pack(levels, 8, 10**6)
    assert sum((rows + 7) * (cols + 7) for rows, cols in levels) > 0.8 * (canvas.rows + 7) * (canvas.cols + 7)


class Branches(nn.Module):
    """Padding as a function, by every kind of layer that pads, and two branches that are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.same = Conv2dSame(8, 8, 5, stride=2)
        self.wide = nn.Conv2d(8, 8, 3, padding="same", dilation=2)
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.leaky_relu(self.stem(x), 0.5)
        x = nn.functional.max_pool2d(-x.abs() - 1, 3, 1, 1)
        x = self.same(nn.functional.pad(x, (0, 2, 0, 2), value=2.0)[:, :, :-2, :-2])
        x = self.wide(x) + nn.functional.avg_pool2d(x, 3, 1, 1)
        x = nn.functional.avg_pool2d(nn.functional.conv2d(x, self.wide.weight, padding=1), 2)
        return self.linear(x.mean((2, 3)))


def torchvisions(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(
        name, weights=None, **({"init_weights": False} if name == "googlenet" else {})
    )


@pytest.mark.parametrize(
    ("build", "patch"),
    [
        (lambda: load_classifier("lite0").module, 224),
        (torchvisions("alexnet"), 224),
        (torchvisions("resnet18"), 96),
        (torchvisions("mobilenet_v2"), 96),
        (torchvisions("shufflenet_v2_x0_5"), 96),
        (Branches, 48),
    ],
)  # fmt: skip
def test_a_canvas_gives_each_level_its_own_map(build: Callable[[], nn.Module], patch: int) -> None:
    torch.manual_seed(0)
    module = build()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias)  # without it the gap stays zero by itself
    network = to_dense(module, patch)
    mosaic = network.mosaic
    assert isinstance(mosaic, MosaicTrunk)
    assert network.mosaic is mosaic
    assert mosaic.spare <= -(-patch // network.stride) + 4
    levels = [(2, 4), (1, 1), (3, 1), (1, 2), (2, 2)]
    stride = network.stride
    pixels = [torch.rand(1, 3, patch + (rows - 1) * stride, patch + (cols - 1) * stride) for rows, cols in levels]
    (canvas,) = pack(levels, mosaic.spare, 10**6)
    canvas_pixels = torch.zeros(1, 3, patch + (canvas.rows - 1) * stride, patch + (canvas.cols - 1) * stride)
    for level, row, col in canvas.places:
        height, width = pixels[level].shape[2:]
        canvas_pixels[:, :, row * stride : row * stride + height, col * stride : col * stride + width] = pixels[level]
    with torch.inference_mode():
        whole = mosaic(canvas_pixels, mosaic.tables(canvas, levels))
        for level, row, col in canvas.places:
            alone = network.trunk(pixels[level])
            assert alone.std() > 0
            shared = whole[:, :, row : row + alone.shape[2], col : col + alone.shape[3]]
            torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.GroupNorm(2, 8),
        nn.ReflectionPad2d(1),
    ],
)
def test_without_a_constant_border_there_is_no_canvas(layer: nn.Module) -> None:
    last = nn.Conv2d(8, 8, 3) if isinstance(layer, nn.ReflectionPad2d) else nn.Identity()
    module = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), layer, last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )  # fmt: skip
    assert to_dense(module, 32).mosaic is None
