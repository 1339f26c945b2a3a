"""A dense network as one graph of convolutions, for runtimes that take a graph, and to compare with."""

import torch
from einops import rearrange
from torch import Tensor, fx, nn

from densescore.errors import DensescoreError
from densescore.models import AdaptationHead
from densescore.network.dense_network import DenseNetwork
from densescore.network.tracing import symbolic_trace
from densescore.network.windows import AveragedWindows, LinearWindows


def convolutional_form(network: DenseNetwork) -> nn.Module:
    """The network with every linear layer as a convolution: FC6's kernel is the window, the later ones' 1×1.

    Args:
        network: as `to_dense` gives it; its weights are copied where they change shape, and shared elsewhere.

    Returns:
        ``[1, 3, P + nS, P + mS]`` normalized pixels → ``[1, classes, n + 1, m + 1]`` logits, a cell per position.

    Raises:
        DensescoreError: the head has a layer that has no convolutional form.

    Example:
        >>> import torchvision
        >>> from densescore.network.surgery import to_dense
        >>> form = convolutional_form(to_dense(torchvision.models.resnet18(), 224))
        >>> tuple(form(torch.zeros(1, 3, 256, 320)).shape)
        (1, 1000, 2, 4)
    """
    project = network.project
    if isinstance(project, AveragedWindows):
        slide: nn.Module = nn.AvgPool2d(project.window, stride=1)
    elif isinstance(project, LinearWindows) and isinstance(project.linear, nn.Linear):
        height, width = project.window
        linear = project.linear
        weight = rearrange(linear.weight.detach(), "f (c h w) -> f c h w", h=height, w=width)
        slide = _convolution(weight, linear.bias)
    else:
        raise DensescoreError(f"{type(project).__name__} has no convolutional form here")
    return nn.Sequential(network.trunk, slide, _pointwise(network.embed), _pointwise(network.classifier)).eval()


def _convolution(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    outputs, inputs, height, width = weight.shape
    layer = nn.Conv2d(inputs, outputs, (height, width), bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer


def _pointwise(head: nn.Module) -> nn.Module:
    """A head of linear layers as 1×1 convolutions; flattening, which they make needless, goes."""
    graph = symbolic_trace(head) if isinstance(head, AdaptationHead) else head
    assert isinstance(graph, fx.GraphModule)
    copied = fx.GraphModule(graph, fx.Graph())
    environment: dict[fx.Node, fx.Node] = {}
    layers: dict[str, nn.Module] = {}
    for node in graph.graph.nodes:
        layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = "_".join(("layer", *str(node.target).split(".")))
        if isinstance(layer, nn.Flatten) or getattr(node.target, "__name__", node.target) == "flatten":
            environment[node] = environment[node.args[0]]
            continue
        environment[node] = copied.graph.node_copy(node, lambda old: environment[old])
        if isinstance(layer, nn.Linear):
            layers[name] = _convolution(layer.weight.detach()[:, :, None, None], layer.bias)
        elif isinstance(layer, nn.ReLU | nn.ReLU6 | nn.Hardswish | nn.Dropout | nn.Identity | nn.Conv2d):
            layers[name] = layer
        elif layer is not None or node.op in ("call_function", "call_method"):
            raise DensescoreError(f"{node.target} ({type(layer).__name__}) has no convolutional form here")
        if layer is not None:
            environment[node].target = name
    for name, layer in layers.items():
        copied.add_module(name, layer)
    copied.recompile()
    return copied
