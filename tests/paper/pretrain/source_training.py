"""Images, a network and a recipe of the pre-training tests; light to import, as processes start with it."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from densescore.paper.pretrain import SourceRecipe
from densescore.paper.pretrain.images import SourceImages, available_classes, find_images
from densescore.paper.pretrain.process import Process
from densescore.paper.pretrain.training import normalizer, train_source

COLORS = {"n00000001": (200, 40, 40), "n00000002": (40, 200, 40), "n00000003": (40, 40, 200)}
CPU = Process(torch.device("cpu"))
FLOAT32 = torch.float32
NORMALIZE = normalizer((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RECIPE = SourceRecipe(side=36, patch=32, batch=6, max_epochs=3)
train = partial(train_source, process=CPU, normalize=NORMALIZE, precision=FLOAT32)


def write_tree(root: Path, count: int = 20, classes: int = 3, height: int = 40, width: int = 48) -> Path:
    """`count` noisy pictures for each of the first `classes` classes."""
    draw = np.random.default_rng(0)
    for name, color in list(COLORS.items())[:classes]:
        (root / name).mkdir(parents=True)
        for index in range(count):
            noise = draw.normal(0, 40, (height, width, 3))
            pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index:03}.png")
    return root


def load_tree(tree: Path) -> SourceImages:
    return find_images(tree, available_classes(tree))


def small_network(classes: int = 3, dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(72, classes))
