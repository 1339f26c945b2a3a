"""Operations that a runtime converts wrongly, or not at all, are run by torch; a sample of benchmarks/operations.py."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from densescore import DensescoreError
from densescore.network.cpu import accelerate
from densescore.network.surgery import to_dense
from tests.conftest import need_openvino
from tests.network.cpu.operations import classifier, compare, operations

LAYERS = dict(operations())
SAMPLE = {
    "AvgPool2d(3, 2, 1, ceil_mode=True)": "torch",
    "AvgPool2d(3, 2, 1, ceil_mode=False)": "openvino",
    "Softplus(beta=2, threshold=20.0)": "torch",
    "Softshrink": "torch",
    "where": "openvino",
    "Upsample(nearest-exact)": "torch",
}


@pytest.mark.parametrize(("name", "runtime"), SAMPLE.items())
def test_numbers_are_torchs_whichever_runtime_has_them(name: str, runtime: str) -> None:
    need_openvino()
    used, difference, note = compare(LAYERS[name])
    assert used == runtime
    assert difference < 1e-4
    assert bool(re.match("torch runs the trunk: OpenVINO", note)) == (runtime == "torch")


def test_a_runtime_asked_for_that_has_other_numbers_is_an_error() -> None:
    need_openvino()
    with pytest.raises(DensescoreError, match="OpenVINO"):
        compare(nn.Softplus(beta=2), "openvino")


@pytest.mark.parametrize("part", ["fast_trunk", "embed", "classifier"])
@pytest.mark.parametrize("factor", [1.01, torch.nan])
def test_fused_layers_with_other_numbers_are_left_out(
    part: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(x) * factor

    fused = accelerate._fused
    monkeypatch.setattr(accelerate, "_fused", lambda network: fused(network) | {part: Wrong(fused(network)[part])})
    plain = to_dense(classifier(nn.ReLU()), 32)
    with pytest.warns(UserWarning, match="oneDNN's numbers deviate"):
        assert accelerate.accelerated(plain, "torch").fast_trunk is plain.trunk
