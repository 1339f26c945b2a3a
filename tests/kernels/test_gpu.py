"""The kernels on a GPU; skipped as unrun without CUDA."""

from __future__ import annotations

import pytest
import torch

from densescore_kernels import power_mean, response_map
from tests.kernels.kernel_cases import DTYPES, PAPER, assert_relative, grid_of, scores_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="unrun: needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 21, 131, 1000, 2048, 2051, 21_841])
@pytest.mark.parametrize("k", [1.0, 2.5, 5.0])
def test_means_and_gradients(classes: int, k: float, dtype: torch.dtype) -> None:
    scores = scores_of(700, classes, dtype)
    offsets = torch.tensor([0, 1, 64, 700])
    eps, rtol = torch.finfo(dtype).eps, 2e-5
    on_cpu, on_gpu = scores.double().requires_grad_(), scores.cuda().requires_grad_()
    want, got = power_mean(on_cpu, offsets, k), power_mean(on_gpu, offsets, k)
    assert_relative(got, want, rtol, 2.0**-149)
    assert torch.equal(got, power_mean(on_gpu, offsets, k))
    want.sum().backward()
    got.sum().backward()
    assert on_cpu.grad is not None
    assert on_gpu.grad is not None
    atol = (eps + rtol) * on_cpu.grad.abs().amax(1, keepdim=True) + 2.0**-24 * (dtype == torch.float16)
    assert_relative(on_gpu.grad, on_cpu.grad, eps + rtol, atol)


@pytest.mark.parametrize("out", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 21, 24])
def test_response_maps(classes: int, dtype: torch.dtype, out: torch.dtype) -> None:
    grids = [PAPER, grid_of(333, 207)]
    scores = torch.cat([scores_of(grid.cells, classes, dtype) for grid in grids])
    want = response_map(scores.double(), grids)
    for got, expected in zip(response_map(scores.cuda(), grids, dtype=out), want, strict=True):
        assert_relative(got, expected, 5e-6 if out == torch.float32 else 2.0**-10)


def test_a_map_of_more_than_2_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("unrun: needs 12 GB of free GPU memory")
    grid = grid_of(10_000, 10_000, (1.0, 2.0))
    scores = scores_of(grid.cells, 22)
    got = response_map(scores.cuda(), grid)
    assert got.numel() > 2**31
    want = response_map(scores[:, -1:], grid)
    assert_relative(got[-1:, -64:], want[:, -64:], 5e-6)


def test_means_of_more_than_2_to_the_31_scores() -> None:
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip("unrun: needs 12 GB of free GPU memory")
    scores = torch.zeros(2_200_000, 1000, dtype=torch.float16, device="cuda")
    scores[-1] = 1.0
    assert_relative(power_mean(scores), torch.full((1, 1000), 1 / 2_200_000), 2e-5)


def test_compiles() -> None:
    scores = torch.rand(300, 21, device="cuda")
    assert torch.equal(torch.compile(power_mean, fullgraph=True)(scores), power_mean(scores))
