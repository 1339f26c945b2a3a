"""Several heads that were trained from different random weights, as one layer: the mean of their logits."""

from collections.abc import Sequence

import torch

from densescore.models.adaptation import AdaptationHead


def mean_head(heads: Sequence[AdaptationHead]) -> AdaptationHead:
    """The layer whose logits are the mean of the heads' logits.

    The heads' FCa lie side by side: n heads of width w make one layer of width n w.

    Args:
        heads: of the same features and classes.

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <...>
        >>> heads, features = [AdaptationHead(8, 3, 4).eval() for _ in range(2)], torch.randn(5, 8)
        >>> torch.allclose(mean_head(heads)(features), (heads[0](features) + heads[1](features)) / 2, atol=1e-6)
        True
    """
    first, count = heads[0], len(heads)
    width = sum(head.fca.out_features for head in heads)
    mean = AdaptationHead(first.fca.in_features, first.fcb.out_features, width)
    mean.dropout.p = first.dropout.p
    with torch.no_grad():
        mean.fca.weight.copy_(torch.cat([head.fca.weight for head in heads]))
        mean.fca.bias.copy_(torch.cat([head.fca.bias for head in heads]))
        mean.fcb.weight.copy_(torch.cat([head.fcb.weight for head in heads], 1) / count)
        mean.fcb.bias.copy_(torch.stack([head.fcb.bias for head in heads]).mean(0))
    return mean.eval()
