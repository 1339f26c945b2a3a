"""Depthwise convolution in torch against the definition, and its refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from densescore_kernels import DensescoreError
from densescore_kernels.depthwise.op import depthwise_conv2d, region_tiles
from tests.kernels.kernel_cases import DTYPES, assert_relative, check_depthwise


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [3, 5, 7])
def test_maps_on_canvases(k: int, stride: int, dtype: torch.dtype) -> None:
    check_depthwise(k, stride, 5, dtype)


def test_whole_maps_are_torchs_own_convolution() -> None:
    x, weight, bias = torch.randn(2, 6, 13, 9), torch.randn(3, 3, 6), torch.randn(6)
    got = depthwise_conv2d(x, weight, bias, stride=2, padding=(1, 1, 1, 1))
    assert_relative(got, F.conv2d(x, weight.permute(2, 0, 1)[:, None], bias, 2, 1, groups=6), 1e-5, 1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_nan_passes_the_clamps() -> None:
    x = torch.zeros(1, 8, 5, 5)
    x[0, 3, 2, 2] = torch.nan
    got = depthwise_conv2d(x, torch.ones(3, 3, 8), torch.zeros(8), input_clamp=(0.0, 6.0), clamp=(0.0, 6.0))
    assert got.isnan().sum() == 9
    assert got[0, 3].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(4, 4, 6)}, "k 4"),
        ({"weight": torch.ones(3, 3, 5)}, r"weight \[3, 3, 5\]"),
        ({"weight": torch.ones(3, 3, 6).half()}, "float16"),
        ({"stride": 3}, "stride 3"),
        ({"backend": "triton"}, "triton.*cannot run here|16 bytes"),
        ({"backend": "cuda"}, "'cuda'"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"x": torch.zeros(1, 6, 8, 8), "weight": torch.ones(3, 3, 6), "bias": torch.zeros(6)}
    with pytest.raises(DensescoreError, match=message):
        depthwise_conv2d(**(arguments | change))  # type: ignore[arg-type]


def test_regions_that_cannot_be_are_named() -> None:
    for maps in ([(0, 0, 0, 2, 9)], [(0, 1, 0, 9, 9)]):
        with pytest.raises(DensescoreError, match="maps: got"):
            region_tiles(maps, 5, 2, (0, 0, 0, 0))
    with pytest.raises(DensescoreError, match="regions: got 0"):
        region_tiles([(0, 0, 0, 9, 9)][:0] or torch.empty(0, 5).numpy(), 3, 1, (1, 1, 1, 1))


def test_opcheck() -> None:
    maps = region_tiles([(0, 0, 0, 5, 4), (0, 0, 6, 5, 3)], 3, 1, (1, 1, 1, 1))
    arguments = (
        torch.rand(1, 8, 5, 9), torch.rand(3, 3, 8), torch.rand(8), 1, [1, 1, 1, 1], [0.0, 6.0, 0.0, 6.0, 0.0],
        maps.table, maps.total, "torch",
    )  # fmt: skip
    utils = ("test_schema", "test_faketensor")  # values between the regions are not written
    torch.library.opcheck(torch.ops.densescore.depthwise_conv2d.default, arguments, test_utils=utils)
