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
    """The network with its linear layers as convolutions: FC6's kernel is the window, that of later ones 1×1.

    A head that has other layers than linear ones and activations is run over the positions as rows of a matrix.

    Args:
        network: as `to_dense` gives it; its weights are copied where they change shape, and shared elsewhere.

    Returns:
        ``[1, 3, P + nS, P + mS]`` normalized pixels → ``[1, classes, n + 1, m + 1]`` logits, a cell per position.

    Raises:
        DensescoreError: a layer that is not linear takes the flattened map.

    Example:
        >>> import torchvision
        >>> from densescore.network.surgery import to_dense
        >>> form = convolutional_form(to_dense(torchvision.models.resnet18(), 224))
        >>> tuple(form(torch.zeros(1, 3, 256, 320)).shape)
        (1, 1000, 2, 4)
    """
    project = network.project
    if isinstance(project, AveragedWindows):
        project_all: nn.Module = nn.AvgPool2d(project.window, stride=1)
    elif isinstance(project, LinearWindows) and isinstance(project.linear, nn.Linear):
        height, width = project.window
        linear = project.linear
        weight = rearrange(linear.weight.detach(), "f (c h w) -> f c h w", h=height, w=width)
        project_all = _convolution(weight, linear.bias)
    else:
        raise DensescoreError(f"{type(project).__name__}: only linear layers may take the flattened map in one graph")
    embed, classifier = _pointwise(network.embed), _pointwise(network.classifier)
    if embed is not None and classifier is not None:
        return nn.Sequential(network.trunk, project_all, embed, classifier).eval()
    shape = project.shape if isinstance(project, AveragedWindows) else (weight.shape[0],)
    return nn.Sequential(network.trunk, project_all, _Rows(network.embed, network.classifier, shape)).eval()


class _Rows(nn.Module):
    """A head with layers other than linear ones (a norm), over the positions of a map as rows of a matrix.

    ``[1, F, n, m]`` → ``[1, C, n, m]``.
    """

    def __init__(self, embed: nn.Module, classifier: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.embed, self.classifier, self.shape = embed, classifier, shape

    def forward(self, feature_map: Tensor) -> Tensor:
        """The head's outputs, position by position."""
        rows = feature_map.flatten(2)[0].T.unflatten(1, self.shape)  # [n·m, *shape]
        logits = self.classifier(self.embed(rows))
        return logits.T.unflatten(1, feature_map.shape[2:])[None]


def _convolution(weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    outputs, inputs, height, width = weight.shape
    layer = nn.Conv2d(inputs, outputs, (height, width), bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer


def _pointwise(head: nn.Module) -> nn.Module | None:
    """A head of linear layers as 1×1 convolutions, without its flattening; None if another layer is in it."""
    graph = symbolic_trace(head) if isinstance(head, AdaptationHead) else head
    assert isinstance(graph, fx.GraphModule)
    copied = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    layers: dict[str, nn.Module] = {}
    for node in graph.graph.nodes:
        layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, nn.Flatten) or getattr(node.target, "__name__", node.target) == "flatten":
            copies[node] = copies[node.args[0]]
            continue
        copies[node] = copied.node_copy(node, lambda old: copies[old])
        pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
        if type(layer) is nn.Linear:
            layers[str(node.target)] = _convolution(layer.weight.detach()[:, :, None, None], layer.bias)
        elif layer is not None and (
            pointwise or isinstance(layer, nn.ReLU | nn.ReLU6 | nn.Hardswish | nn.Dropout | nn.Identity)
        ):
            layers[str(node.target)] = layer
        elif node.op not in ("placeholder", "output"):
            return None
    return fx.GraphModule(layers, copied)
