"""A scorer in a line: what runs, on which patches."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from densescore.scoring.scorer import DenseScorer


def describe_scorer(scorer: "DenseScorer") -> str:
    """Name, number of classes, scales, patch, stride, exponent, and what it runs on, in words."""
    count = len(scorer.labels)
    if scorer.patch_sizes is None:
        sizes = "scales " + ", ".join(f"{scale:g}" for scale in scorer.scales)
    else:
        sizes = "patches of " + ", ".join(f"{size:g}" for size in scorer.patch_sizes) + " pixels of the image"
    dtype = str(scorer.dtype).removeprefix("torch.")
    crops = ", by crops" if scorer.context == "patch" else ""
    return (
        f"{scorer.name!r}, {count:,} class{'es' * (count != 1)}; {sizes}; a patch of {scorer.network.patch} pixels "
        f"every {scorer.network.stride}; k = {scorer.k:g}; {dtype} on {scorer.device} by {scorer.runtime}{crops}"
    )
