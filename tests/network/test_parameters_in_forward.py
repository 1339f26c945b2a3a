"""Parameters and buffers that ``forward`` uses itself (layer scale, GRN, blur pools, …) go wherever a network goes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from densescore import DenseScorer
from densescore.network.export import export_model
from densescore.network.surgery import to_dense
from tests.conftest import need_openvino


class Scaled(nn.Module):
    """One parameter or buffer in each part: the trunk (between layers and as a kernel), FC7 and FC8."""

    blur: Tensor

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 16, 4, 2), nn.Conv2d(16, 8, 3, 2, 1)
        self.scale = nn.Parameter(torch.rand(16, 1, 1, generator=generator) + 0.5)
        self.register_buffer("blur", torch.ones(16, 1, 2, 2) / 4)
        self.fc6, self.fc7, self.fc8 = nn.Linear(8 * 25, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.gain = nn.Parameter(torch.rand(1, 1, 12, 1, 1, generator=generator) + 0.5)
        self.shift = nn.Parameter(torch.rand(3, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.relu(self.first(x)) * self.scale, self.blur, stride=1, groups=16)
        x = F.relu(self.second(x)).flatten(1)
        return self.fc8(F.relu(self.fc7(F.relu(self.fc6(x)))) * self.gain.flatten()) + self.shift


OPTIONS: dict[str, Any] = {"patch_size": 23, "labels": ("a", "b", "c"), "scales": (1, 1.7)}


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"runtime": "torch"}, 1e-5),
        ({"runtime": "openvino"}, 1e-4),
        ({"dtype": "bfloat16", "runtime": "torch"}, 0.02),
    ],
    ids=["torch", "openvino", "bfloat16"],
)
def test_every_way_to_run_gives_the_networks_scores(
    options: dict[str, Any], tolerance: float, cat: NDArray[np.uint8]
) -> None:
    if options.get("runtime") == "openvino":
        need_openvino()
    image = cat[100:151, 100:173]
    scorer = DenseScorer(Scaled(), **OPTIONS, **options)
    plain = to_dense(Scaled(), 23)
    expected = []
    with torch.inference_mode():
        for level in scorer.pyramid(*image.shape[:2]).levels:
            pixels = scorer.level(image, scorer.pyramid(*image.shape[:2]), level).float()
            maps = plain.trunk(pixels)
            block = plain.block(maps, range(level.rows), range(level.cols))
            expected.append(plain.classifier(plain.embed_blocks([block])).softmax(1))
    whole = torch.cat(expected)
    assert whole.std() > 1e-2
    torch.testing.assert_close(scorer.score(image).patch_scores, whole, rtol=tolerance, atol=tolerance)


def test_a_finer_stride_keeps_the_scores_of_shared_cells(cat: NDArray[np.uint8]) -> None:
    image = cat[100:151, 100:173]
    coarse, fine = (DenseScorer(Scaled(), runtime="torch", stride=stride, **OPTIONS).score(image) for stride in (4, 1))
    for at, finer in zip(coarse.levels, fine.levels, strict=True):
        shared = fine.patch_scores[finer.cells].unflatten(0, (finer.rows, finer.cols))[::4, ::4]
        torch.testing.assert_close(shared.flatten(0, 1), coarse.patch_scores[at.cells], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_export(suffix: str, tmp_path: Path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    described = export_model(Scaled(), tmp_path / f"scaled{suffix}", patch_size=23, labels=("a", "b", "c"))
    assert described["largest_difference"] < 1e-5


KINDS = (
    "torchvision:convnext_tiny",  # layer scale
    "timm:convnextv2_atto",  # GRN
    "timm:resnetblur18",  # blur pools
    "timm:poolformer_s12",  # GroupNorm
    "timm:inception_next_atto",
    "timm:mambaout_femto",  # channels last
    "timm:convnext_zepto_rms",  # RMSNorm in the head
    "timm:fastvit_t8",  # layer scale of one number per map
    "timm:nf_resnet26",  # weight standardization
    "timm:efficientnet_b0_g16_evos",  # evolved norms
)


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_one_patch_has_the_networks_own_scores(name: str) -> None:
    """Statement 1 of "the same scores", with a network of each kind."""
    library, _, kind = name.partition(":")
    module = timm.create_model(kind) if library == "timm" else torchvision.models.get_model(kind)
    torch.manual_seed(0)
    module.eval()
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter)
        elif "scale" in name or name.endswith(("gamma", "grn.weight")):
            nn.init.uniform_(parameter, 0.5, 1)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    last = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.bias)  # beside small features, it alone would decide the scores
    last.weight.mul_(2 / module(pixels).std())  # logits of order 1: no probability is 0, no two scores are the same
    scorer = DenseScorer(module, patch_size=64, mean=(0,) * 3, std=(1,) * 3, scales=(1,), runtime="torch")
    logits = module(pixels)
    assert logits.std() > 1
    given = scorer.score(image).patch_scores.log()
    difference = (given - logits.log_softmax(1)).abs().max()
    assert difference <= 1e-4 * (1 + float(logits.abs().max()))
