"""Faster layers and runtimes: equal scores, chosen by layers and dtype, named in the result."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from densescore import DensescoreError, DenseScorer
from densescore.network.cpu import onednn
from densescore.network.cpu.accelerate import accelerated
from densescore.network.dense_network import DenseNetwork
from densescore.network.surgery import to_dense
from tests.conftest import Toy

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the extra densescore[openvino]"
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_a_faster_network_is_a_new_one_with_the_same_numbers(dtype: torch.dtype, tolerance: float) -> None:
    if not onednn.available(dtype):
        pytest.skip(f"oneDNN does not compute in {dtype} on this processor")
    plain = to_dense(Toy().to(dtype), 20)
    blocks = [torch.rand(1, 6, 5, 9).to(dtype), torch.rand(1, 6, 3, 3).to(dtype)]

    def outputs(network: DenseNetwork) -> list[torch.Tensor]:
        with torch.inference_mode():
            features = network.embed_blocks(blocks)
            return [features, network.classifier(features)]

    expected = outputs(plain)
    faster = accelerated(plain, "torch")
    assert all(map(torch.equal, outputs(plain), expected))
    for actual, wanted in zip(outputs(faster), expected, strict=True):
        assert wanted.float().std() > 0.01
        torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)
    assert dtype == torch.bfloat16 or not torch.equal(outputs(faster)[0], expected[0])  # Cook–Toom rounds otherwise


@needs_openvino
@pytest.mark.parametrize("size", [(224, 224), (150, 333), (61, 40)])
def test_openvino_gives_the_same_scores(size: tuple[int, int], coffee: NDArray[np.uint8]) -> None:
    image = coffee[: size[0], : size[1]]
    scorers = [DenseScorer("lite0", scales=(1, 1.3), runtime=runtime) for runtime in ("torch", "openvino")]
    torch_scores, openvino_scores = (scorer.score(image) for scorer in scorers)
    assert (torch_scores.runtime, openvino_scores.runtime) == ("torch", "openvino")
    assert torch_scores.patch_scores.std() > 1e-3
    torch.testing.assert_close(openvino_scores.patch_scores, torch_scores.patch_scores, rtol=1e-4, atol=1e-6)


def convolutions(channels: int, groups: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, channels, 4, stride=4), torch.nn.Conv2d(channels, channels, 3, groups=groups),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 3),
    ).eval()  # fmt: skip


@needs_openvino
@pytest.mark.parametrize(
    ("channels", "groups", "dtype", "expected"),
    [
        (8, 8, "float32", "openvino"),
        (8, 8, "bfloat16", "openvino"),
        (8, 8, "float16", "torch"),
        (32, 4, "float32", "openvino"),
        (96, 2, "float32", "torch"),
        (64, 1, "bfloat16", "torch"),
    ],
)
def test_auto_follows_from_the_layers_and_the_dtype_and_is_named(
    channels: int, groups: int, dtype: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = convolutions(channels, groups)
    for _ in range(2):
        scorer = DenseScorer(module, patch_size=32, scales=(1,), dtype=dtype)
        assert scorer.runtime == expected
        assert scorer.score(torch.rand(3, 32, 40)).runtime == expected
    monkeypatch.setattr("densescore.network.cpu.openvino.find_spec", lambda name: None)
    assert DenseScorer(module, patch_size=32, dtype=dtype).runtime == "torch"


@needs_openvino
def test_openvino_refuses_float16() -> None:
    with pytest.raises(DensescoreError, match="float32 or bfloat16, not torch.float16"):
        DenseScorer(Toy(), patch_size=20, labels=("a", "b", "c"), dtype="float16", runtime="openvino")


@needs_openvino
@pytest.mark.skipif(not onednn.available(torch.bfloat16), reason="oneDNN does not compute in bfloat16 here")
@pytest.mark.parametrize("model", ["lite0", "lite2-stages"])
def test_rounding_of_folded_weights_is_no_deviation(model: str, recwarn: pytest.WarningsRecorder) -> None:
    assert DenseScorer(model, dtype="bfloat16").runtime == "openvino"
    assert not [str(warning.message) for warning in recwarn if "deviate" in str(warning.message)]


def test_a_missing_runtime_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DensescoreError, match=r"needs OpenVINO: pip install"):
        DenseScorer(Toy(), patch_size=20, labels=("a", "b", "c"), runtime="openvino")
    with pytest.raises(DensescoreError, match="runtime must be one of auto, torch, openvino, compile, got 'onnx'"):
        DenseScorer(Toy(), patch_size=20, labels=("a", "b", "c"), runtime="onnx")  # type: ignore[arg-type]
