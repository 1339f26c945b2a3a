"""Any classifier, patch by patch: the paper's crops, for networks that cannot run over a whole image in one pass."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from densescore.errors import DensescoreError, reason_of
from densescore.network.dense_network import DenseNetwork
from densescore.network.surgery import to_dense

STRIDE = 32
"""Pixels of a level from one crop to the next, as for most dense networks; never more than a patch."""

_linear_inputs: ContextVar[list[Tensor]] = ContextVar("linear_inputs")


class CropNetwork(nn.Module):
    """A classifier that sees one patch at a time; what `DenseScorer` needs of it, as of a `DenseNetwork`.

    Attributes:
        backbone: ``[N, 3, P, P]`` normalized pixels → rows ``[N, …]`` that `classifier` and `to_features` take.
        classifier: rows, or features ``[N, D]`` → ``[N, classes]`` logits.
        to_features: rows → ``[N, D]`` features, the input of the last linear layer.
        patch: P, side of the network's input in pixels.
        stride: S, pixels of a level from one crop to the next.
        phases: 1; a `DenseNetwork` that was made finer has more.
        feature_width: D; 0 where the network has no features.
        classes: number of logits.
        contexts: what a patch may see past its border: nothing.
    """

    contexts = ("patch",)
    phases = 1

    def __init__(
        self, backbone: nn.Module, classifier: nn.Module, to_features: nn.Module, patch: int, width: int, classes: int
    ) -> None:
        super().__init__()
        self.backbone, self.classifier, self.to_features = backbone, classifier, to_features
        self.patch, self.stride, self.feature_width, self.classes = patch, min(STRIDE, patch), width, classes
        self._run: Callable[[Tensor], Tensor] = backbone

    @property
    def below_classifier(self) -> tuple[nn.Module, ...]:
        """The layers that the features follow from."""
        return (self.backbone,)

    def replace_classifier(self, head: nn.Module, features: int, classes: int) -> None:
        """Put an adaptation head (FCa, FCb) in place of the last linear layer.

        Raises:
            DensescoreError: the head takes features of another width than this network gives.
        """
        if features != self.feature_width:
            raise DensescoreError(f"the head takes {features} features, but the network gives {self.feature_width}")
        self.classifier, self.classes = nn.Sequential(self.to_features, head), classes

    def make_finer(self, stride: int) -> None:
        """Refuse another stride.

        Raises:
            DensescoreError: always.
        """
        raise DensescoreError(
            f"stride={stride}: {_BY_CROPS}, {self.stride} pixels apart; a finer stride needs a convolutional network"
        )

    def use_runtime(self, runtime: str) -> str:
        """Choose what runs the backbone.

        Args:
            runtime: ``"auto"`` and ``"torch"``: torch, layer by layer. ``"compile"``: `torch.compile`, which takes a
                minute or so at the start; it pays on a CUDA device where thousands of crops follow.

        Returns:
            ``"torch"`` or ``"compile"``.

        Raises:
            DensescoreError: another runtime; or the network cannot be compiled, or not on this machine.
        """
        if runtime in ("auto", "torch"):
            return "torch"
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
        self._run = compiled
        return "compile"

    def embed_crops(self, crops: Tensor) -> Tensor:
        """Rows of crops: ``[N, 3, P, P]`` → ``[N, …]``."""
        return self._run(crops)

    def forward(self, crops: Tensor) -> Tensor:
        """Score crops as the original network does: ``[N, 3, P, P]`` → ``[N, classes]`` logits."""
        return self.classifier(self.embed_crops(crops))


PatchNetwork: TypeAlias = DenseNetwork | CropNetwork
"""What scores patches: the attributes that both classes have are all that most of densescore needs."""

_BY_CROPS = "this network is scored by crops (context='patch')"


def patch_network(module: nn.Module, patch: int, *, by_crops: bool) -> PatchNetwork:
    """The dense form of a classifier; where it has none and `by_crops` allows it, the form that takes crops.

    Args:
        module: ``[N, 3, P, P]`` → ``[N, C]`` logits.
        patch: P.
        by_crops: whether the network may be one that does not run over a whole image.

    Raises:
        DensescoreError: see `to_dense` and `to_crops`.
    """
    try:
        return to_dense(module, patch)
    except DensescoreError:
        if not by_crops:
            raise
    return to_crops(module, patch)


def dense_only(network: PatchNetwork, what: str) -> DenseNetwork:
    """The network, where it is dense.

    Args:
        network: of a scorer.
        what: the thing that is asked of it, for the message.

    Raises:
        DensescoreError: it takes crops.
    """
    if isinstance(network, CropNetwork):
        raise DensescoreError(f"{what} needs a convolutional network; {_BY_CROPS}")
    return network


@torch.inference_mode()
def to_crops(module: nn.Module, patch: int) -> CropNetwork:
    """Cut a classifier of any kind before its last linear layer.

    Args:
        module: ``[N, 3, P, P]`` pixels → ``[N, C]`` logits; its own copy, which is changed.
        patch: P.

    Raises:
        DensescoreError: the module does not take such pixels, or does not give one row of logits per crop.

    Example:
        >>> network = to_crops(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5), nn.GELU(), nn.Linear(5, 2)), 8)
        >>> network.stride, network.feature_width, network.classes
        (8, 5, 2)
    """
    name = type(module.eval()).__name__
    parameter = next((own for own in module.parameters() if own.is_floating_point()), None)
    if parameter is None:
        raise DensescoreError(f"{name} has no parameters")
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
    layer, features, output = rows[-1]
    width = features.shape[1]
    if torch.equal(output, logits):  # nothing follows the last linear layer
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
    """A classifier that also gives the input of one of its linear layers: crops → features and logits, side by side.

    Args:
        module: ``[N, 3, P, P]`` → ``[N, C]``.
        layer: name of the linear layer, whose last input is ``[N, D]``.

    Shape:
        ``[N, 3, P, P]`` → ``[N, D + C]``.
    """

    def __init__(self, module: nn.Module, layer: str) -> None:
        super().__init__()
        self.module = module
        module.get_submodule(layer).register_forward_pre_hook(_note_input)

    def forward(self, crops: Tensor) -> Tensor:
        """Each call notes in a list of its own, so that threads do not read each other's."""
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
    """Some columns of rows: ``[N, ≥ stop]`` → ``[N, stop - start]``."""

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
