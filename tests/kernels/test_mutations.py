"""A test of the tests: a deliberate bug in each kernel must be caught by the checks that the kernels pass."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.kernels.kernel_cases import check_power_mean, check_response_map, check_softmax_power_mean, grid_of

pytestmark = [
    pytest.mark.triton_interpret,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1 before import"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def power() -> None:
    check_power_mean(63, 21, images=3, backend="triton")


def softmax() -> None:
    check_softmax_power_mean(63, 21, images=3, backend="triton")


def long_softmax() -> None:
    check_softmax_power_mean(2, 2051, images=1, backend="triton")


def maps() -> None:
    check_response_map([grid_of(19, 31, (1, 1.7), 7, 3), grid_of(12, 18, (1, 2), 8, 4)], 5, backend="triton")


Check = Callable[[], None]
# kernel, the check that runs it, the text to change, what it becomes
MUTATIONS: list[tuple[str, Check, str, str]] = [
    ("power_sums", power, "(i + rows < count)", "(i + rows <= count)"),  # wrong mask
    ("power_sums", power, "rows[:, None] * C", "rows[:, None] * (C + 1)"),  # wrong stride
    ("power_sums", power, "tl.sum(total, 0), cols < C)", "tl.sum(total, 0), cols < C - 1)"),
    ("power_grads", power, "(i + rows < count)", "(i + rows + 1 < count)"),
    ("power_grads", power, "image * C + cols", "image * BLOCK_C + cols"),
    ("power_grads", power, "start = (first + i) * C", "start = (first + i + 1) * C"),
    ("add_chunks", power, "(i + rows < count)", "(i + rows < count - 1)"),
    ("add_chunks", power, "partials + (first + i) * C", "partials + (first + i) * BLOCK_C"),
    ("softmax_sums", softmax, "tl.where(held, tl.exp2(k * x + HEADROOM), 0.0)", "tl.exp2(k * x + HEADROOM)"),
    ("softmax_sums", softmax, "rows[:, None] * C", "rows[:, None] * (C + 1)"),
    ("softmax_sums", softmax, "inside & (wanted != 0)", "inside & (cols < C - 1)[None, :]"),
    ("softmax_grads", softmax, "(cols < C)[None, :]\n        start", "(cols <= C)[None, :]\n        start"),
    ("softmax_grads", softmax, "rows[:, None] * C", "rows[:, None] * (C + 1)"),
    ("log2_softmax", softmax, "(cols < C)", "(cols <= C)"),
    ("long_softmax_sums", long_softmax, "& (i > 0)", "& (i >= 0)"),
    ("long_softmax_sums", long_softmax, "rows[:, None] * C", "rows[:, None] * (C + 1) + 1"),
    ("long_softmax_grads", long_softmax, "(cols < C)[None, :]", "(cols < C - 1)[None, :]"),
    ("long_softmax_grads", long_softmax, "image * C + cols", "image * C + cols + 1"),
    ("row_statistics", long_softmax, "(cols < C)[None, :]", "(cols < C // 2)[None, :]"),
    ("row_statistics", long_softmax, "(top - higher)", "(higher - top)"),
    ("window_sums", maps, "(j < cols)", "(j <= cols)"),  # off-by-one window
    ("window_sums", maps, "(i < rows)", "(i + 1 < rows)"),
    ("window_sums", maps, "i * step", "i * (step + 1)"),
    ("spread", maps, "(code >> COUNT_BITS)", "(code >> COUNT_BITS) + 1"),
    ("spread", maps, "inside = (k < K)[:, None] & (x < W)", "inside = (k < K)[:, None] & (x <= W)"),
    ("spread", maps, "range(height)", "range(height - 1)"),
    ("spread", maps, "k.to(tl.int64)[:, None] * area", "k.to(tl.int64)[:, None] * (area + 1)"),
]


def mutated(module: ModuleType, name: str, old: str, new: str, folder: Path) -> ModuleType:
    """A copy of a kernel module in which one piece of one function is changed."""
    source = Path(str(module.__file__)).read_text()
    start = source.index(f"def {name}(")
    end = source.find("\n@triton.jit", start)
    body = source[start : end if end > 0 else None]
    assert old in body, f"{old!r} is not in {name}: the mutation no longer applies"
    path = folder / f"mutated_{module.__name__.rpartition('.')[2]}.py"
    path.write_text(source.replace(body, body.replace(old, new)))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


@pytest.mark.parametrize(
    ("name", "check", "old", "new"), MUTATIONS, ids=[f"{name}-{at}" for at, (name, *_) in enumerate(MUTATIONS)]
)
def test_a_bug_is_caught(
    name: str, check: Check, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from densescore_kernels.power_mean import triton_kernels as power_kernels
    from densescore_kernels.power_mean import triton_launch as power_launches
    from densescore_kernels.power_mean import triton_long_rows as long_kernels
    from densescore_kernels.response_map import triton_kernels as map_kernels
    from densescore_kernels.response_map import triton_launch as map_launches

    sources = (power_kernels, long_kernels, map_kernels)
    source = next(module for module in sources if f"def {name}(" in inspect.getsource(module))
    copy = mutated(source, name, old, new, tmp_path)
    launches = map_launches if source is map_kernels else power_launches
    replaced = 0
    for kernel in [form.kernel.__name__ for form in launches.FORMS.listed.values()]:
        if hasattr(copy, kernel) and hasattr(launches, kernel):
            monkeypatch.setattr(launches, kernel, getattr(copy, kernel))
            replaced += 1
    assert replaced
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("check", [power, softmax, long_softmax, maps])
def test_what_is_not_broken_passes(check: Check) -> None:
    check()
