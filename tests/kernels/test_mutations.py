"""A test of the tests: a deliberate bug in each kernel must be caught by the checks that the kernels pass."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from densescore_kernels.aot import OPERATIONS
from tests.kernels.kernel_cases import (
    check_depthwise,
    check_image_levels,
    check_power_mean,
    check_response_map,
    grid_of,
)

pytestmark = [
    pytest.mark.triton_interpret,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1 before import"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def power() -> None:
    check_power_mean(63, 21, images=3, backend="triton")


def maps() -> None:
    check_response_map([grid_of(19, 31, (1, 1.7), 7, 3), grid_of(12, 18, (1, 2), 8, 4)], 5, backend="triton")


def convolution() -> None:
    check_depthwise(3, 2, 40, maps=((0, 0, 0, 18, 22), (1, 2, 14, 8, 9)), backend="triton")


def levels() -> None:
    check_image_levels(backend="triton")


Check = Callable[[], None]
# kernel, the check that runs it, the text to change, what it becomes
MUTATIONS: list[tuple[str, Check, str, str]] = [
    ("power_sums", power, "(i + rows < count)", "(i + rows <= count)"),  # wrong mask
    ("power_sums", power, "rows[:, None] * row_length", "rows[:, None] * (row_length + 1)"),  # wrong stride
    ("power_sums", power, "tl.sum(total, 0), cols < row_length)", "tl.sum(total, 0), cols < row_length - 1)"),
    ("power_grads", power, "(i + rows < count)", "(i + rows + 1 < count)"),
    ("power_grads", power, "image * row_length + cols", "image * BLOCK_C + cols"),
    ("power_grads", power, "start = (first + i) * row_length", "start = (first + i + 1) * row_length"),
    ("add_chunks", power, "(i + rows < count)", "(i + rows < count - 1)"),
    ("add_chunks", power, "partials + (first + i) * row_length", "partials + (first + i) * BLOCK_C"),
    ("window_sums", maps, "(j < cols)", "(j <= cols)"),  # off-by-one window
    ("window_sums", maps, "(i < rows)", "(i + 1 < rows)"),
    ("window_sums", maps, "i * step", "i * (step + 1)"),
    ("spread", maps, "(code >> COUNT_BITS)", "(code >> COUNT_BITS) + 1"),
    ("spread", maps, "inside = (k < K)[:, None] & (x < W)", "inside = (k < K)[:, None] & (x <= W)"),
    ("spread", maps, "range(height)", "range(height - 1)"),
    ("spread", maps, "k.to(tl.int64)[:, None] * area", "k.to(tl.int64)[:, None] * (area + 1)"),
    ("depthwise", convolution, "& (y < height)", "& (y <= height)"),  # sees the neighbor
    ("depthwise", convolution, "(column >= 0) & ", ""),
    ("depthwise", convolution, "tl.where(inside, value, pad_value)", "tl.where(inside, value, 0.0)"),
    ("depthwise", convolution, "i * STRIDE - top", "i * STRIDE - left"),
    ("depthwise", convolution, "value = tl.minimum(value, in_high", "value = tl.minimum(value, high"),
    ("depthwise", convolution, "weight + tap * C", "weight + (K * K - 1 - tap) * C"),
    ("depthwise", convolution, "written = (i < out_height)", "written = (i <= out_height)"),
    ("depthwise", convolution, "tile // across", "tile // (across + 1)"),
    ("level_pixels", levels, "written = position < padded", "written = position <= padded"),
    ("level_pixels", levels, "(new_x + 0.5) * step_x - 0.5", "new_x * step_x"),  # half a pixel
    ("level_pixels", levels, "step_y.to(tl.int32), 0) + 2", "step_y.to(tl.int32), 0) + 1"),
    ("level_pixels", levels, "old_y * W", "old_y * H"),
    ("level_pixels", levels, "target + y * row", "target + y * padded_width"),
    ("reflect", levels, "2 * (size - 1)", "2 * size"),
    ("tap_weight", levels, "step > 1", "step > 2"),
    ("row_share", levels, "weight * 4) / 4", "weight * 2) / 2"),
    ("row_share", levels, "row * weight)", "row)"),
]


def mutated(module: ModuleType, name: str, old: str, new: str, folder: Path) -> ModuleType:
    """A copy of a kernel module in which one piece of one function is changed."""
    source = Path(str(module.__file__)).read_text()
    start = source.index(f"def {name}(")
    body = source[start : source.index("\n\n\n", start)]
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
    versions = [importlib.import_module(f"densescore_kernels.{folder}.triton") for folder in OPERATIONS]
    version = next(module for module in versions if f"def {name}(" in inspect.getsource(module))
    copy = mutated(version, name, old, new, tmp_path)
    kernels = {config.kernel.__name__ for config in version.CONFIGS.by_key.values()}
    assert kernels
    for kernel in kernels:
        monkeypatch.setattr(version, kernel, getattr(copy, kernel))
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("check", [power, maps, convolution, levels])
def test_what_is_not_broken_passes(check: Check) -> None:
    check()
