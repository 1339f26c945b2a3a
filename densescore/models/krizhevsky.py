"""The paper's own network: Krizhevsky, Sutskever, Hinton (NIPS 2012), on one GPU."""

import torch
from torch import Tensor, nn

from densescore.models.weights import classes_in, load_strict


class Krizhevsky(nn.Module):
    """C1..C5 (96-256-384-384-256), FC6, FC7, FC8, as Oquab et al. (CVPR 2014) pre-trained it.

    C2, C4 and C5 work in two groups; local response normalization follows C1 and C2; pools overlap (3×3, stride 2).
    """

    def __init__(
        self,
        classes: int = 1000,
        width: int = 4096,  # of FC6 and FC7; 6144 in the paper's 1,512-class network
        padding: int = 2,  # of C1: 2 for 224×224 pixels, 0 for Caffe's 227×227; both give C1's 55×55 map
        lrn_alpha: float = 1e-4,  # α of a / (k + α Σ a²)^β, the sum over 5 channels
        lrn_k: float = 2.0,
        pool_first: bool = False,  # in C1 and C2 pools come before normalizations, as in Caffe's CaffeNet
        ceil: bool = False,  # pools keep an incomplete last window, as Caffe's; no difference at 227×227 pixels
    ) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=ceil)

        def lrn_and_pool() -> tuple[nn.Module, nn.Module]:
            # torch divides alpha by the window's size, which Krizhevsky's formula does not.
            lrn = nn.LocalResponseNorm(5, alpha=5 * lrn_alpha, beta=0.75, k=lrn_k)
            return (pool(), lrn) if pool_first else (lrn, pool())

        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4, padding=padding), nn.ReLU(inplace=True), *lrn_and_pool(),  # C1
            nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(inplace=True), *lrn_and_pool(),  # C2
            nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True),  # C3
            nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(inplace=True),  # C4
            nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(inplace=True), pool(),  # C5
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(256 * 6 * 6, width), nn.ReLU(inplace=True), nn.Dropout(0.5),  # FC6
            nn.Linear(width, width), nn.ReLU(inplace=True), nn.Dropout(0.5),  # FC7
            nn.Linear(width, classes),  # FC8
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalized pixels ``[N, 3, P, P]`` → logits ``[N, classes]``."""
        return self.classifier(self.features(pixels).flatten(1))


def initialize(network: Krizhevsky, seed: int) -> None:
    """First weights as Krizhevsky et al. drew them (Section 5): N(0, 0.01²).

    Biases are 1 in C2, C4, C5, FC6 and FC7, to start ReLUs in their linear part, and 0 elsewhere.
    """
    generator = torch.Generator().manual_seed(seed)
    convolutions = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    linear = [layer for layer in network.classifier if isinstance(layer, nn.Linear)]
    ones = (convolutions[1], *convolutions[3:], *linear[:-1])
    for layer in (*convolutions, *linear):
        weight, bias = layer.parameters()
        nn.init.normal_(weight, std=0.01, generator=generator)
        nn.init.constant_(bias, float(layer in ones))


def build(
    weights: dict[str, Tensor] | None, *, width: int = 4096, caffe: bool = False, pool_first: bool = False
) -> nn.Module:
    """The network with `weights`, which set the number of classes and the width of FC6 and FC7, or with random ones.

    `caffe`: Caffe's reference variant: no padding in C1, α divided by the window's 5, k = 1 in the LRN, ceil pools.
    """
    classes = classes_in(weights, "classifier.6.bias", 1000)
    width = classes_in(weights, "classifier.0.bias", width)
    variant = {"padding": 0, "lrn_alpha": 1e-4 / 5, "lrn_k": 1.0, "ceil": True} if caffe else {}
    network = Krizhevsky(classes, width, pool_first=pool_first, **variant)  # type: ignore[arg-type]
    if weights is not None:
        load_strict(network, weights, "weights for krizhevsky")
    return network
