"""A network, a recipe and a place that the tests of pre-training share; light to import, as processes start with it."""

import torch
from torch import nn

from densescore.paper.pretrain.distributed import Process
from densescore.paper.pretrain.precision import Precision
from densescore.paper.pretrain.recipe import SourceRecipe
from densescore.paper.pretrain.training import normalizer

CPU = Process(torch.device("cpu"))
FLOAT32 = Precision(torch.float32)
NORMALIZE = normalizer((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
RECIPE = SourceRecipe(side=36, patch=32, batch=6, max_epochs=3)


def small_network(classes: int = 3, dropout: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(72, classes))
