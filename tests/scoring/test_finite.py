"""Values that are not finite raise an error, instead of a confident class."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from densescore import DensescoreError, DenseScorer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip
    module.register_buffer("mask", torch.full((2,), -torch.inf), persistent=False)  # no weight, as it is not saved
    return module.eval()


@pytest.mark.parametrize("runtime", ["torch", "auto"])
@pytest.mark.parametrize(
    ("name", "value", "dtype", "message"),
    [
        ("0.weight", torch.nan, "float32", r"weights of Sequential: 1 of 216 values of 0\.weight are not finite"),
        ("0.bias", torch.inf, "float32", r"0\.bias are not finite"),
        ("1.weight", torch.nan, "float32", r"1\.weight are not finite"),
        ("1.running_mean", torch.nan, "float32", r"1\.running_mean are not finite"),
        ("1.running_var", torch.nan, "float32", r"1\.running_var are not finite"),
        ("1.running_var", -1.0, "float32", r"trunk\.1\.running_var hold a negative variance"),
        ("3.weight", -torch.inf, "bfloat16", r"3\.weight are not finite"),
        ("3.weight", 1e6, "float16", r"trunk\.3\.weight .* not finite in torch\.float16"),
        ("7.weight", torch.nan, "float32", r"7\.weight are not finite"),
    ],
)
def test_weights_that_are_not_finite_are_refused_at_load(
    name: str, value: float, dtype: str, message: str, runtime: Any
) -> None:
    module = network()
    module.state_dict()[name].view(-1)[1] = value
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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("context", ["image", "patch"])
def test_a_dtype_that_an_operation_does_not_take_is_refused_at_the_start(dtype: str, context: Any) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    with pytest.raises(DensescoreError, match=rf"does not run in torch\.{dtype} on cpu: .*try another dtype"):
        DenseScorer(module, patch_size=16, dtype=dtype, device="cpu", context=context)
