"""How many operators a device is asked for per image, from decoded pixels to image scores and response maps.

python benchmarks/operator_calls.py --data ../shared/data/imagenet-samples/images

A GPU spends some microseconds on each, however little it computes, and a level's layers compute little. The layers are
those that run on a GPU; the counting, by a dispatch mode, needs none. "Before" is one level of one image at a time.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from torch.utils._python_dispatch import TorchDispatchMode

from densescore import DenseScorer, response_maps
from densescore.io.find_images import list_images
from densescore.io.images import Pixels, read_image

RESULTS = Path(__file__).parent / "results" / "operator_calls.json"
BATCHES = (1, 8, 32)


class Counter(TorchDispatchMode):
    """Counts operators; views, which a device does not see, apart."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = any(output.alias_info is not None and not output.alias_info.is_write for output in func._schema.returns)
        self.views += views
        self.calls += not views
        return func(*args, **(kwargs or {}))


def count(scorer: DenseScorer, images: Sequence[Pixels], batch: int) -> dict[str, float]:
    """Operators per image for images that are scored `batch` at a time."""
    with Counter() as counter:
        for start in range(0, len(images), batch):
            found = scorer.score_batch(images[start : start + batch])
            for scores in found:
                scores.image_scores()
            if scorer.batching is None:
                for scores in found:
                    scores.response_map(scores.labels[:5])
            else:
                response_maps(found, found[0].labels[:5])
    return {"operators": counter.calls / len(images), "views": counter.views / len(images)}


def main(
    data: Annotated[Path, typer.Option(help="A folder of photographs of mixed sizes.")],
    models: Annotated[str, typer.Option(help="With commas between.")] = "lite0,alexnet",
    images: Annotated[int, typer.Option(help="Photographs, drawn at random.")] = 32,
    out: Annotated[Path, typer.Option(help="The JSON to write.")] = RESULTS,
) -> None:
    """Count, and write the table."""
    torch.manual_seed(0)
    paths = random.Random(0).sample(list_images([data]), images)
    pixels = [read_image(path) for path in paths]
    rows = []
    for model in models.split(","):
        with mock.patch("densescore.scoring.scorer.speed_up", return_value="torch"):  # the layers that run on a GPU
            scorer = DenseScorer(model, weights="default" if model == "lite0" else None, device="cpu")
        scorer.batching = None
        before = count(scorer, pixels[:8], 1)
        scorer.batching = "canvases"
        scorer.score(pixels[0])  # tries once whether the network takes canvases
        for batch in (size for size in BATCHES if size <= images):
            after = count(scorer, pixels[: max(8, batch)], batch)
            row = {"model": model, "scales": len(scorer.scales), "batch": batch, "before": before, "after": after}
            rows.append(row | {"times_fewer": before["operators"] / after["operators"]})
            print(json.dumps(rows[-1]), flush=True)
    sizes = sorted({(image.shape[1], image.shape[0]) for image in pixels})
    record = {"command": "python benchmarks/operator_calls.py", "images": images, "sizes": len(sizes), "rows": rows}
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
