"""Faster forms are made and checked once per network, and taken from the cache after that."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore import DenseScorer
from densescore.network.cpu import accelerate, onednn, openvino
from tests.conftest import Toy, need_openvino


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache, and the checks and conversions since."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done: list[str] = []
    check, convert = accelerate._Check.__call__, openvino._convert

    def checking(self: Any, form: Any, name: str) -> None:
        done.append(name)
        check(self, form, name)

    def converting(*arguments: Any) -> Any:
        done.append("converted")
        return convert(*arguments)

    monkeypatch.setattr(accelerate._Check, "__call__", checking)
    monkeypatch.setattr(openvino, "_convert", converting)
    return done


def scorer_of(runtime: str = "openvino", **options: Any) -> DenseScorer:
    return DenseScorer("lite0", scales=(1,), runtime=runtime, **options)  # type: ignore[arg-type]


FIRST = ["oneDNN", "converted", "OpenVINO"]


def test_a_second_scorer_makes_and_checks_nothing(work: list[str], cat: NDArray[np.uint8]) -> None:
    need_openvino()
    first = scorer_of().score(cat)
    assert work == FIRST
    second = scorer_of().score(cat)
    assert (work, second.runtime) == (FIRST, "openvino")
    assert torch.equal(first.patch_scores, second.patch_scores)


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({"dtype": "bfloat16"}, onednn.available(torch.bfloat16)),
        ({"stride": 16}, True),
        ({"weights": None}, True),  # random: other weights
        ({"model": Toy(), "patch_size": 20, "labels": ("a", "b", "c")}, True),  # its forward may change
        ({"k": 2.0, "scales": (1, 2)}, False),
    ],
)
def test_another_network_is_checked(work: list[str], options: dict[str, Any], again: bool) -> None:
    scorer_of("torch")
    assert work == ["oneDNN"]
    DenseScorer(**{"model": "lite0", "runtime": "torch", **options})
    assert work == ["oneDNN"] * (1 + again)


@pytest.mark.parametrize("harm", ["cut off", "no folder"])
def test_a_cache_that_cannot_be_used_is_an_empty_one(work: list[str], tmp_path: Path, harm: str) -> None:
    need_openvino()
    if harm == "no folder":
        (tmp_path / "densescore").write_text("a file")
    scorer_of()
    for file in tmp_path.glob("densescore/forms/*.form"):
        file.write_bytes(file.read_bytes()[:-1])
    assert scorer_of().runtime == "openvino"
    assert work == FIRST * 2
