"""Single operations in a small network, by its fast forms and by torch's own layers."""

import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densescore.errors import DensescoreWarning


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.function(x)


def operations() -> Iterator[tuple[str, nn.Module]]:
    """Names and layers: maps of 8 channels → maps of 8 channels, of any size."""
    layer: nn.Module
    # Activations
    plain = "ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh Softplus"
    plain += " Softsign LogSigmoid Tanhshrink Softshrink Hardshrink PReLU RReLU Identity Dropout Dropout2d"
    for name in plain.split():
        yield name, getattr(nn, name)()
    for layer in (
        *(nn.Softplus(beta=2), nn.Softplus(beta=0.5, threshold=1), nn.Softshrink(0.2), nn.Hardshrink(0.2)),
        *(nn.Threshold(0.1, 0.5), nn.Threshold(0.0, 0.0), nn.ELU(0.5), nn.CELU(0.5), nn.LeakyReLU(0.3)),
        *(nn.GELU("tanh"), nn.Hardtanh(-0.5, 0.7), nn.PReLU(8), nn.Softmax(1), nn.LogSoftmax(1), nn.Softmin(1)),
    ):
        yield repr(layer), layer

    # Pools
    for kind in (nn.AvgPool2d, nn.MaxPool2d):
        for kernel, stride, pad in ((2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 1, 1), (5, 2, 2), (4, 2, 1)):
            for ceil in (False, True):
                yield (
                    f"{kind.__name__}({kernel}, {stride}, {pad}, ceil_mode={ceil})",
                    kind(kernel, stride, pad, ceil_mode=ceil),
                )
    for options in ({"count_include_pad": False}, {"divisor_override": 5}):
        for ceil in (False, True):
            yield f"AvgPool2d(3, 2, 1, ceil_mode={ceil}, {options})", nn.AvgPool2d(3, 2, 1, ceil_mode=ceil, **options)
    yield "MaxPool2d(3, 2, 1, dilation=2)", nn.MaxPool2d(3, 2, 1, dilation=2)
    yield "LPPool2d(2, 2)", nn.LPPool2d(2, 2)

    # Convolutions
    for kernel, stride, pad, dilation, groups in (
        *((3, 1, 1, 1, 1), (3, 1, 1, 1, 8), (3, 2, 1, 1, 8), (5, 1, 2, 1, 4), (5, 2, 2, 1, 2), (1, 1, 0, 1, 1)),
        *((3, 1, 2, 2, 1), (3, 1, 2, 2, 8), (7, 1, 3, 1, 8), (2, 2, 0, 1, 1), (4, 2, 1, 1, 8)),
    ):
        layer = nn.Conv2d(8, 8, kernel, stride, pad, dilation, groups)
        yield f"Conv2d({kernel}, {stride}, {pad}, dilation={dilation}, groups={groups})", layer
    for mode in ("reflect", "replicate"):
        yield f"Conv2d(3, padding_mode={mode})", nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)
    yield "Conv2d(3, padding=same)", nn.Conv2d(8, 8, 3, padding="same", groups=8)
    yield "ConvTranspose2d(2, 2)", nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.MaxPool2d(2))

    # Norms and padding
    for layer in (
        *(nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8, track_running_stats=False)),
        *(nn.InstanceNorm2d(8), nn.GroupNorm(2, 8), nn.LocalResponseNorm(5), nn.LocalResponseNorm(4, 1e-2, 0.5, 2.0)),
        *(nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ConstantPad2d(1, 0.5), nn.ZeroPad2d(-1)),
        *(nn.ChannelShuffle(2), nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2))),
    ):
        yield repr(layer), layer

    # Upsampling, back to the size before
    for mode in ("nearest", "nearest-exact", "bilinear", "bicubic"):
        yield f"Upsample({mode})", nn.Sequential(nn.Upsample(scale_factor=2, mode=mode), nn.AvgPool2d(2))

    # Functions
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "abs": torch.abs, "sign": torch.sign, "exp": lambda x: (-x.abs()).exp(), "log1p": lambda x: x.abs().log1p(),
        "sqrt": lambda x: (x.abs() + 0.1).sqrt(), "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(), "square": torch.square,
        "floor": torch.floor, "ceil": torch.ceil, "round": lambda x: (4 * x).round(),
        "trunc": lambda x: (4 * x).trunc(),
        "frac": torch.frac, "sin": torch.sin, "cos": torch.cos, "atan": torch.atan, "erf": torch.erf,
        "reciprocal": lambda x: 1 / (1 + x.abs()), "pow": lambda x: x.abs() ** 1.5,
        "clamp": lambda x: x.clamp(-0.3, 0.4),
        "clamp_min": lambda x: x.clamp_min(0.1), "where": lambda x: torch.where(x > 0, x, 0.1),
        "gt": lambda x: x * (x > 0.1),
        "maximum": lambda x: torch.maximum(x, torch.full((), 0.1)), "nan_to_num": torch.nan_to_num, "sinh": torch.sinh,
        "remainder": lambda x: torch.remainder(x, 0.3), "fmod": lambda x: torch.fmod(x, 0.3),
        "lerp": lambda x: torch.lerp(x, x * x, 0.3),
        "normalize": lambda x: F.normalize(x, dim=1), "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True),
        "cumsum": lambda x: x.cumsum(1), "flip": lambda x: x.flip(1), "roll": lambda x: torch.roll(x, 3, 1) * 1.0,
        "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), "glu": lambda x: F.glu(torch.cat([x, x], 1), 1),
        "mean": lambda x: x * x.mean((2, 3), keepdim=True), "amax": lambda x: x - x.amax(1, keepdim=True),
        "std": lambda x: x / (x.std(1, keepdim=True) + 1), "expm1": lambda x: torch.expm1(-x.abs()), "neg": torch.neg,
    }  # fmt: skip
    for name, function in functions.items():
        yield name, Function(function)


def classifier(layer: nn.Module) -> nn.Module:
    """A small depthwise network, so that OpenVINO is the default, with the layer in its middle."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), layer, nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


def compare(layer: nn.Module, runtime: str = "auto") -> tuple[str, float, str]:
    """Runtime that is taken, largest difference of logits from the plain network's, and the note."""
    from densescore.network.cpu import accelerate
    from densescore.network.surgery import to_dense

    torch.manual_seed(1)
    plain = to_dense(classifier(layer), 32)
    with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
        warnings.simplefilter("always", DensescoreWarning)
        fast = accelerate.accelerated(plain, runtime)  # type: ignore[arg-type]
        step = plain.stride
        level = torch.randn(1, 3, 32 + 3 * step, 32 + 5 * step)
        expected, actual = (
            network.classifier(network.embed_blocks([network.fast_trunk(level)])) for network in (plain, fast)
        )
    notes = [str(warning.message) for warning in caught if issubclass(warning.category, DensescoreWarning)]
    return fast.runtime, float((actual - expected).abs().max() / expected.abs().max()), "; ".join(notes)
