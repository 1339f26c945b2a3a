"""The operations as torch sees them: registration, compilation, choice of backend, and import without Triton."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from densescore_kernels import DensescoreError, power_mean, response_map
from densescore_kernels.launch import Configs, vector
from densescore_kernels.response_map.op import _pack, _unpack
from tests.kernels.kernel_cases import PAPER, assert_relative, grid_of

OFFSETS = torch.tensor([0, 2, 5])
GRID = grid_of(20, 30)
compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="torch.compile is tested without the interpreter"
)


@pytest.mark.parametrize("offsets", [None, OFFSETS], ids=["one", "two"])
def test_opcheck_of_the_power_mean(offsets: torch.Tensor | None) -> None:
    ops, x = torch.ops.densescore, torch.rand(5, 3)
    torch.library.opcheck(ops.power_mean.default, (x.requires_grad_(), offsets, 5.0, "torch"))
    grad = torch.rand(1 if offsets is None else 2, 3)
    torch.library.opcheck(ops.power_mean_backward.default, (grad, x.detach(), offsets, 5.0, "torch"))


@pytest.mark.parametrize("classes", [None, torch.tensor([2, 0])], ids=["all", "two"])
def test_opcheck_of_the_response_map(classes: torch.Tensor | None) -> None:
    arguments = (torch.rand(GRID.cells, 3), _pack([GRID]), classes, torch.float16, "torch")
    torch.library.opcheck(torch.ops.densescore.response_map.default, arguments)


def test_grids_survive_packing() -> None:
    assert _unpack(_pack([GRID, PAPER])) == (GRID, PAPER)


@compiled
def test_compiles_into_one_graph_with_gradients() -> None:
    grid = grid_of(4, 12, (1.0,), patch=8, stride=4)
    assert grid.cells == 5

    def score(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = (2 * logits).softmax(1)
        return power_mean(y, OFFSETS, 3.0), response_map(y.detach(), grid, [1, 0])

    plain, fused = (torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    want = score(plain)
    got = torch.compile(score, fullgraph=True, backend="aot_eager")(fused)
    want[0].sum().backward()
    got[0].sum().backward()
    assert_relative(got[0], want[0], 1e-6)
    assert_relative(got[1], want[1], 1e-6)
    assert plain.grad is not None
    assert fused.grad is not None
    assert_relative(fused.grad, plain.grad, 1e-5, 1e-8)


@compiled
def test_triton_is_refused_where_it_cannot_run() -> None:
    with pytest.raises(DensescoreError, match="backend: got 'triton', which cannot run here: .*not on a GPU"):
        power_mean(torch.rand(3, 2), backend="triton")
    with pytest.raises(DensescoreError, match="cannot run here: the tensor is torch.float64"):
        response_map(torch.rand(GRID.cells, 2).double(), GRID, backend="triton")


def test_the_package_works_without_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, densescore_kernels as d\n"
        "print(d.power_mean(torch.ones(2, 1)).item())\n"
        "try: d.power_mean(torch.ones(2, 1), backend='triton')\n"
        "except d.DensescoreError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("1.0\nbackend: got 'triton', which cannot run here: the package triton cannot be")


def test_a_configuration_that_was_never_compiled_is_not_launched() -> None:
    class Kernel:
        __name__ = "new"

    with pytest.raises(RuntimeError, match="not among the 0 that are compiled ahead of time"):
        Configs([], {}).launch(Kernel(), (1,), torch.ones(1), BLOCK=2)


def test_vectors_are_as_wide_as_rows_allow() -> None:
    assert [vector(torch.float32, row) for row in (1000, 21, 4)] == [4, 1, 4]
    assert [vector(torch.bfloat16, row) for row in (1000, 1004, 8)] == [8, 1, 8]
