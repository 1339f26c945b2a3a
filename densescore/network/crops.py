"""Any classifier, patch by patch: the paper's crops, for networks that cannot run over a whole image."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from typing_extensions import Self

from densescore.errors import DensescoreError, reason_of
from densescore.network.dense_network import DenseNetwork, check_head, replaced

STRIDE = 32
"""Pixels of a level from one crop to the next, as for most dense networks; never more than a patch."""

_BY_CROPS = "this network is scored by crops (context='patch')"

_linear_inputs: ContextVar[list[Tensor]] = ContextVar("linear_inputs")


class CropNetwork(nn.Module):
    """A classifier that sees one patch at a time, with the attributes of a `DenseNetwork` that `DenseScorer` needs."""

    contexts = ("patch",)  # beyond its border, a patch sees nothing
    phases = 1
    runtime = "torch"

    def __init__(
        self,
        backbone: nn.Module,  # [N, 3, P, P] normalized pixels → rows [N, …]
        classifier: nn.Module,  # rows, or features [N, D] → [N, classes] logits
        to_features: nn.Module,  # rows → [N, D], the input of the last linear layer
        patch: int,  # P, side of the network's input in pixels
        feature_width: int,  # D; 0 where the network has no features
        classes: int,
    ) -> None:
        super().__init__()
        self.backbone, self.classifier, self.to_features = backbone, classifier, to_features
        self.patch, self.stride = patch, min(STRIDE, patch)
        self.feature_width, self.classes = feature_width, classes
        self._run: Callable[[Tensor], Tensor] = backbone

    @property
    def below_classifier(self) -> tuple[nn.Module, ...]:
        """The layers below the features."""
        return (self.backbone,)

    def with_classifier(self, head: nn.Module, features: int, classes: int) -> Self:
        """The network with an adaptation head (FCa, FCb) in place of its last linear layer."""
        check_head(features, self.feature_width)
        return replaced(self, classifier=nn.Sequential(self.to_features, head), classes=classes)

    def with_stride(self, stride: int) -> Self:
        """Refuse another stride."""
        raise DensescoreError(
            f"stride={stride}: {_BY_CROPS}, {self.stride} pixels apart; a finer stride needs a convolutional network"
        )

    def with_runtime(self, runtime: str) -> Self:
        """The network run by torch layer by layer (``"auto"``, ``"torch"``), or by `torch.compile` (``"compile"``).

        Compiling takes about a minute, which pays on a CUDA device for thousands of crops.
        """
        if runtime in ("auto", "torch"):
            return self
        if runtime != "compile":
            raise DensescoreError(f"runtime {runtime!r} needs a convolutional network; {_BY_CROPS}")
        parameter = next(self.backbone.parameters())
        sample = torch.zeros(4, 3, self.patch, self.patch, dtype=parameter.dtype, device=parameter.device)
        sample = sample.contiguous(memory_format=torch.channels_last)
        torch._dynamo.mark_dynamic(sample, 0)  # the last batch of an image is smaller than the others
        try:
            compiled = torch.compile(self.backbone)
            with torch.inference_mode():
                compiled(sample)
        except Exception as error:  # the compiler, the code generator and the system's own compiler each raise theirs
            raise DensescoreError(f"runtime 'compile': torch.compile failed: {reason_of(error)}") from error
        return replaced(self, _run=compiled, runtime="compile")

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Rows of crops: ``[N, 3, P, P]`` → ``[N, …]``."""
        return self._run(crops)

    def forward(self, crops: Tensor) -> Tensor:
        """Score crops as the original network does: ``[N, 3, P, P]`` → ``[N, classes]`` logits."""
        return self.classifier(self.embed_crops(crops))


PatchNetwork: TypeAlias = DenseNetwork | CropNetwork
"""Scores patches: most of densescore needs only the attributes that both classes have."""


def dense_only(network: PatchNetwork, what: str) -> DenseNetwork:
    """A dense network; for a `CropNetwork` an error that `what` needs a convolutional one."""
    if isinstance(network, CropNetwork):
        raise DensescoreError(f"{what} needs a convolutional network; {_BY_CROPS}")
    return network


@torch.inference_mode()
def to_crops(module: nn.Module, patch: int) -> CropNetwork:
    """Cut any classifier ``[N, 3, P, P]`` → ``[N, C]`` logits before its last linear layer; the module is changed."""
    name = type(module.eval()).__name__
    parameter = next((tensor for tensor in module.parameters() if tensor.is_floating_point()), None)
    if parameter is None:
        raise DensescoreError(f"{name} has no parameters")

    # Run two crops, and watch the linear layers
    sample = torch.rand(2, 3, patch, patch, generator=torch.Generator().manual_seed(0))
    sample = sample.to(parameter.device, parameter.dtype)
    try:
        logits, calls = _watched(module, sample)
    except Exception as error:  # it is the user's own forward that runs
        raise DensescoreError(
            f"{name} cannot be run on {patch}×{patch} pixels (patch_size={patch}): {reason_of(error)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2 or not logits.shape[1]:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DensescoreError(f"{name} must return one [N, classes] tensor of logits; for 2 crops it returned {got}")
    classes = logits.shape[1]
    rows = [call for call in calls if call[1].ndim == 2 and len(call[1]) == 2]  # not one row per token
    if not rows:
        return CropNetwork(module, nn.Identity(), Columns(0, 0), patch, 0, classes)

    # Cut before the last one if its output is the logits, else return its input beside them
    layer, features, output = rows[-1]
    width = features.shape[1]
    if torch.equal(output, logits):
        linear = module.get_submodule(layer)
        module.set_submodule(layer, nn.Identity())
        try:
            if torch.equal(module(sample), features):
                return CropNetwork(module, linear, nn.Identity(), patch, width, classes)
        except Exception:  # the module reads the layer's own attributes
            pass
        module.set_submodule(layer, linear)
    both = WithFeatures(module, layer)
    return CropNetwork(both, Columns(width, width + classes), Columns(0, width), patch, width, classes)


class WithFeatures(nn.Module):
    """A classifier with the input of one of its linear layers: ``[N, 3, P, P]`` → ``[N, D + C]``."""

    def __init__(self, module: nn.Module, layer: str) -> None:
        super().__init__()
        self.module = module
        module.get_submodule(layer).register_forward_pre_hook(_note_input)

    def forward(self, crops: Tensor) -> Tensor:
        """Each call has a list of its own, so threads do not read each other's features."""
        inputs: list[Tensor] = []
        token = _linear_inputs.set(inputs)
        try:
            logits = self.module(crops)
        finally:
            _linear_inputs.reset(token)
        return torch.cat([inputs[-1], logits], 1)


def _note_input(_: nn.Module, args: tuple[Any, ...]) -> None:
    _linear_inputs.get([]).append(args[0])


class Columns(nn.Module):
    """A range of columns: ``[N, ≥ stop]`` → ``[N, stop - start]``."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, rows: Tensor) -> Tensor:
        """The columns from `start` to `stop`."""
        if self.stop == 0:
            raise DensescoreError("the network has no linear layer that takes one row per crop, so it has no features")
        if rows.shape[1] < self.stop:
            raise DensescoreError("the network's scores do not follow from its features alone: use score")
        return rows[:, self.start : self.stop]


def _watched(module: nn.Module, sample: Tensor) -> tuple[Any, list[tuple[str, Tensor, Tensor]]]:
    """The module's output, and (name, input, output) of each call of a linear layer, in order."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda _, args, output: calls.append((name, args[0], output))

    hooks = [
        layer.register_forward_hook(note(name))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        return module(sample), calls
    finally:
        for hook in hooks:
            hook.remove()
