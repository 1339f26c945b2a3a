"""A miniature of the paper's Table 2: does pre-training matter, and on which classes? Characters instead of objects.

    python benchmarks/source_classes_mini.py

Classes are characters, drawn in the twelve DejaVu fonts that matplotlib ships: rotated, scaled, shifted, on darker
strokes, in many greys. The target is 16 Cyrillic letters with three training images each. Sources are other
characters, none of which is a Cyrillic letter:

- PRE related: 40 Latin and Greek letters;
- PRE random: 40 drawn, anew for each seed, from these and 191 others: digits, arrows, operators, frames, shapes;
- PRE more classes: the 40 letters, and 40 more drawn from the rest;
- NO PRETRAIN: the whole network from random weights on the target's images.

Pre-training is `train_source`, as for ImageNet, on a small network; transfer is `train_head` on its frozen FC7, as for
VOC. Written: ``results/source_classes_mini.json``, ``.md`` and ``.png``.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.utils.data import DataLoader

from densescore.files import written_whole
from densescore.models.adaptation import AdaptationHead
from densescore.pretrain.images import SourceImages, find_images
from densescore.pretrain.precision import find_precision
from densescore.pretrain.processes import Place
from densescore.pretrain.recipe import SourceRecipe
from densescore.pretrain.training import normaliser, train_source
from densescore.pretrain.views import Views, centre_view, collate
from densescore.transfer.patches import TrainingPatches
from densescore.transfer.recipe import Recipe
from densescore.transfer.training import train_head

RESULTS = Path(__file__).parent / "results"
SIDE, PATCH = 36, 32
TARGET = "бджзлфцчшыэюягий"
RELATED = "abdefghkmnqrtwyzABDEGKMQRSWαβγδεζηθλμξπσψωΣΩ"[:40]
ABSENT = "∁∅∊∍∎∔∖∡∢∤∥∦∮∯"  # from some of the fonts
OTHERS = (
    "".join(map(chr, range(0x2190, 0x21B4)))  # arrows
    + "".join(map(chr, range(0x2200, 0x2230)))  # operators
    + "".join(map(chr, range(0x2550, 0x2580)))  # frames
    + "".join(map(chr, range(0x25A0, 0x25D0)))  # shapes
    + "0123456789#$%&@?!+={}[]<>"
).translate(dict.fromkeys(map(ord, ABSENT)))
VARIANTS = ("NO PRETRAIN", "PRE random", "PRE related", "PRE more classes")
CPU = Place(torch.device("cpu"))
NORMALISE = normaliser((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
FLOAT32 = find_precision("float32", CPU.device)


def draw_character(character: str, draw: np.random.Generator, fonts: Sequence[Path]) -> Image.Image:
    """One picture of a character: grey ``[SIDE, SIDE]``."""
    background, ink = draw.integers(0, 100), draw.integers(140, 256)
    canvas = Image.new("L", (SIDE, SIDE), int(background))
    pen = ImageDraw.Draw(canvas)
    for _ in range(draw.integers(2, 6)):  # strokes that belong to no character
        ends = draw.uniform(0, SIDE, 4).tolist()
        pen.line(ends, fill=int(background + draw.integers(0, 60)), width=int(draw.integers(1, 4)))
    font = ImageFont.truetype(str(fonts[int(draw.integers(len(fonts)))]), int(draw.integers(20, 31)))
    mask = Image.new("L", (SIDE, SIDE), 0)
    centre = (SIDE / 2 + draw.uniform(-3, 3), SIDE / 2 + draw.uniform(-3, 3))
    ImageDraw.Draw(mask).text(centre, character, fill=255, font=font, anchor="mm")
    mask = mask.rotate(draw.uniform(-15, 15), Image.Resampling.BILINEAR)
    canvas.paste(int(ink), mask=mask)
    noisy = np.asarray(canvas) + draw.normal(0, 12, (SIDE, SIDE))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def draw_tree(root: Path, characters: str, count: int, seed: int) -> SourceImages:
    """`count` training and a quarter as many validation pictures of each character, as files."""
    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*[!y].ttf"))
    fonts = [font for font in fonts if "Display" not in font.name]
    names = [f"{ord(character):06x}" for character in sorted(characters)]
    for name in names:
        draw = np.random.default_rng([seed, int(name, 16)])
        for part, pictures in (("train", count), ("val", max(2, count // 4))):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(pictures):
                draw_character(chr(int(name, 16)), draw, fonts).save(folder / f"{index:03}.png")
    return find_images(root, names)


def small_network(classes: int, seed: int) -> nn.Sequential:
    """The paper's network in small: convolutions and overlapping pools, FC6, FC7, FC8, dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 24, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),  # 15×15
            nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),  # 7×7
            nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),  # 3×3
            nn.Flatten(),
            nn.Linear(576, 192), nn.ReLU(), nn.Dropout(0.3),  # FC6
            nn.Linear(192, 192), nn.ReLU(), nn.Dropout(0.3),  # FC7
            nn.Linear(192, classes),  # FC8
        )  # fmt: skip
        for layer in network:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # torch's own start takes long to learn from
        return network


def features(network: nn.Module, images: SourceImages, part: str) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """The network's outputs for each picture, ``[N, D]``, and its class."""
    views = Views(getattr(images, part), centre_view(SIDE, PATCH))
    rows, labels = [], []
    network.eval()
    with torch.inference_mode():
        for viewed in DataLoader(views, 256, collate_fn=collate):
            rows.append(network(NORMALISE(viewed.pixels[:, 0])))
            labels.append(viewed.labels)
    return torch.cat(rows).numpy().astype(np.float16), torch.cat(labels).numpy()


def accuracy(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float((scores.argmax(1) == labels).mean())


def transfer(network: nn.Sequential, target: SourceImages, seed: int) -> float:
    """FCa and FCb on the frozen FC7: accuracy on the target's test pictures."""
    trunk = network[:-1]
    values, labels = features(trunk, target, "train")
    patches = TrainingPatches(values, labels, np.arange(len(labels)))
    recipe = Recipe(width=192, batch=16, round=1000, most_rounds=40, patience=2)
    head: AdaptationHead = train_head(patches, len(target.classes), recipe, seed)
    test, truth = features(trunk, target, "val")
    with torch.inference_mode():
        return accuracy(head(torch.from_numpy(test).float())[:, : len(target.classes)].numpy(), truth)


def run(variant: str, seed: int, target: SourceImages, folder: Path, count: int, epochs: int) -> dict[str, Any]:
    """Pre-train, transfer and measure one variant."""
    start = time.perf_counter()
    recipe = SourceRecipe(side=SIDE, patch=PATCH, batch=16, learning_rate=0.005, most_epochs=epochs, patience=2)
    settings: dict[str, Any] = {"normalise": NORMALISE, "precision": FLOAT32, "seed": seed}
    record: dict[str, Any] = {"variant": variant, "seed": seed}
    if variant == "NO PRETRAIN":
        network = small_network(len(target.classes), seed)
        scratch = replace(recipe, most_epochs=15 * epochs, patience=20)
        # What steers the learning rate is not the test set, but training pictures, by the patch in the middle.
        train_source(network, replace(target, val=target.train[:: len(target.train) // 16]), scratch, CPU, **settings)
        record["accuracy"] = accuracy(*features(network, target, "val"))  # type: ignore[arg-type]
    else:
        draw = np.random.default_rng(seed)
        random = "".join(draw.choice(list(RELATED + OTHERS), 40, replace=False))
        more = RELATED + "".join(draw.choice(list(OTHERS), 40, replace=False))
        characters = {"PRE random": random, "PRE related": RELATED, "PRE more classes": more}[variant]
        source = draw_tree(folder, characters, count, seed)
        network = small_network(len(source.classes), seed)
        measured = train_source(network, source, recipe, CPU, **settings)
        record |= {"classes": len(source.classes), "letters": sum(map(RELATED.count, characters))}
        record |= {"source_accuracy": measured.top1, "accuracy": transfer(network, target, seed)}
    return record | {"wall_s": round(time.perf_counter() - start, 1)}


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Every run a dot, every variant's mean a bar."""
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for x, variant in enumerate(VARIANTS):
        values = [record["accuracy"] for record in runs if record["variant"] == variant]
        axes.bar(x, np.mean(values), width=0.6, color="0.85")
        axes.plot(np.full(len(values), x) + np.linspace(-0.12, 0.12, len(values)), values, "o", color="C0", ms=5)
    axes.set_xticks(range(len(VARIANTS)), [variant.replace("PRE ", "PRE\n", 1) for variant in VARIANTS])
    axes.axhline(1 / len(TARGET), color="0.5", lw=1, ls=":")
    axes.text(3.45, 1 / len(TARGET) + 0.01, "chance", ha="right", color="0.4")
    axes.set_ylabel("target accuracy")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| | source classes | letters among them | source accuracy | target accuracy | lowest, highest |"]
    lines.append("| --- " * 6 + "|")
    for variant in VARIANTS:
        runs = [record for record in results["runs"] if record["variant"] == variant]
        values = [record["accuracy"] for record in runs]
        cells = [
            f"{np.mean([record[key] for record in runs]):.{digits}f}" if key in runs[0] else ""
            for key, digits in (("classes", 0), ("letters", 0), ("source_accuracy", 3))
        ]
        row = [variant, *cells, f"{np.mean(values):.3f}", f"{min(values):.3f}, {max(values):.3f}"]
        lines.append(f"| {' | '.join(row)} |")
    total = sum(record["wall_s"] for record in results["runs"])
    lead = (
        f"{len(TARGET)} Cyrillic letters, {results['target_count']} training pictures each; {results['count']} "
        f"training pictures of each source class; {results['seeds']} seeds; {total:.0f} s in all, on a busy core."
    )
    return (
        "# A miniature of Table 2\n\nMade by `python benchmarks/source_classes_mini.py`; numbers are of "
        f"`source_classes_mini.json`. {lead}\n\n![Accuracy of the four variants](source_classes_mini.png)\n\n"
        + "\n".join(lines)
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=100, help="training pictures of each source class")
    parser.add_argument("--target-count", type=int, default=3, help="training pictures of each target class")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            # The target's test pictures: many, so that the spread is that of training.
            target = draw_tree(Path(folder) / "target", TARGET, 4 * 30, 1000 + seed)
            few = [sample for sample in target.train if int(sample[0].stem) < options.target_count]
            target = replace(target, train=tuple(few))
            for variant in VARIANTS:
                path = Path(folder) / variant
                runs.append(run(variant, seed, target, path, options.count, options.epochs))
                print(runs[-1], flush=True)
        results = {"runs": runs, "torch": torch.__version__, "seeds": seed + 1, "count": options.count}
        results |= {"target_count": options.target_count, "epochs": options.epochs}
        base = options.results / "source_classes_mini"
        for suffix, text in ((".json", json.dumps(results, indent=1) + "\n"), (".md", table(results))):
            with written_whole(base.with_suffix(suffix), overwrite=True) as temporary:
                temporary.write_text(text)
        with written_whole(base.with_suffix(".png"), overwrite=True) as temporary:
            plot(runs, temporary)


if __name__ == "__main__":
    main()
