"""Numbers that are not finite are refused where they arise, not turned into a confident class."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from densescore import DensescoreError, DenseScorer


def network(last: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, last),
    ).eval()  # fmt: skip


def spoil(layer: int, tensor: str, value: float) -> Callable[[nn.Sequential], None]:
    def change(module: nn.Sequential) -> None:
        with torch.no_grad():
            getattr(module[layer], tensor).flatten()[1] = value

    return change


@pytest.mark.parametrize("runtime", ["torch", "auto"])
@pytest.mark.parametrize(
    ("change", "dtype", "message"),
    [
        (
            spoil(0, "weight", float("nan")),
            "float32",
            r"weights of Sequential: 1 of 216 values of 0\.weight are not finite",
        ),
        (spoil(0, "bias", float("inf")), "float32", r"0\.bias are not finite"),
        (spoil(1, "weight", float("nan")), "float32", r"1\.weight are not finite"),
        (spoil(1, "running_mean", float("nan")), "float32", r"1\.running_mean are not finite"),
        (spoil(1, "running_var", float("nan")), "float32", r"1\.running_var are not finite"),
        (spoil(1, "running_var", -1.0), "float32", r"trunk\.1\.running_var hold a negative variance"),
        (spoil(3, "weight", -float("inf")), "bfloat16", r"3\.weight are not finite"),
        (spoil(3, "weight", 1e6), "float16", r"trunk\.3\.weight .* not finite in torch\.float16"),
        (spoil(7, "weight", float("nan")), "float32", r"7\.weight are not finite"),
    ],
)
def test_weights_that_are_not_finite_are_refused_at_load(
    change: Callable[[nn.Sequential], None], dtype: str, message: str, runtime: Any
) -> None:
    module = network()
    change(module)
    with pytest.raises(DensescoreError, match=message):
        DenseScorer(module, patch_size=32, dtype=dtype, runtime=runtime)
    DenseScorer(network(), patch_size=32, dtype=dtype, runtime=runtime)


@pytest.mark.parametrize("context", ["image", "patch"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_outputs_that_overflow_are_refused(context: Any, activation: str, cat: NDArray[np.uint8]) -> None:
    for layer, where in ((3, "features"), (7, "scores")):
        module: Any = network()
        with torch.no_grad():
            module[layer].weight.abs_().mul_(3e38)  # finite; sums are not
            module[3].bias.fill_(1)
        scorer = DenseScorer(module, patch_size=32, scales=(1,))
        scorer.activation = activation  # type: ignore[assignment]
        with pytest.raises(DensescoreError, match="not finite; try another dtype"):
            scorer.score(cat, context=context)
        if where == "features":
            with pytest.raises(DensescoreError, match="features in torch.float32 are not finite"):
                scorer.features(cat, context=context)
        else:
            assert torch.isfinite(scorer.features(cat, context=context)).all()
