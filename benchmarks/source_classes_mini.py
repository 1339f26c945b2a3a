"""A miniature of the paper's Table 2: does pre-training matter, and on which classes? Characters instead of objects.

    python benchmarks/source_classes_mini.py

Classes are characters, drawn in the twelve DejaVu fonts that matplotlib ships: rotated, scaled, shifted, over other
strokes, in many greys. The target is 16 Cyrillic letters with few training images each. Sources are other characters,
none of which is a Cyrillic letter; 40 Latin and Greek letters are near the target, 191 digits, arrows, operators,
frames and shapes are far from it. As in the paper's Table 2:

- NO PRETRAIN: the whole network from random weights on the target's images;
- PRE random: 40 characters drawn from all (PRE-1000R);
- PRE chosen: 20 near and 20 far ones (PRE-1000C, whose classes overlap with VOC's in part);
- PRE chosen, near ones added: the other 20 near ones with them (PRE-1512).

And one that is not in the paper, for the cost of freezing: PRE chosen, nothing frozen.

Pre-training is `train_source`, as for ImageNet, on a small network, until its learning rate has been divided as often
as the recipe says; transfer is `train_head` on its frozen FC7, as for VOC. All see the target's training images by
shifted patches and their mirror images, and are measured on the same test images, which steer nothing.

Written to ``results/source_classes_mini.json``, ``.md`` and ``.png`` after each run, from which a killed one resumes.
"""

import itertools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from common import RESULTS, markdown, parser, read_json, write_json, write_text
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from densescore.io.files import atomic_write
from densescore.models.head import AdaptationHead
from densescore.paper.pretrain import SourceRecipe
from densescore.paper.pretrain.images import Sample, SourceImages, Views, center_view, collate, find_images, ten_views
from densescore.paper.pretrain.process import Process
from densescore.paper.pretrain.training import Event, normalizer, train_source
from densescore.transfer.recipe import Recipe
from densescore.transfer.train_head import train_head
from densescore.transfer.training_set import TrainingPatches

Row = dict[str, Any]
SIDE, PATCH = 36, 32
TARGET = "бджзлфцчшыэюягий"
TEST = 100  # test pictures of each target class
# Letters and others whose mirror image looks like another source's or a target's are not among these.
NEAR = "abefghkmnqrtwyzABDEGKMQRSαβγζηθλμξπσψΩFJ"
FAR = (
    "←↑↓↔↕↖↘↚↛↜↞↟↡↢↤↥↧↩↯↰↲∀∂∄∆∇∈∉∌∏∐∑−∓∕∗∘∙√∛∜∝∞∟∠∣∧∨∪∫∬∭═║╒╓╔╘╙╚╞╟╣╤╥╦╧╨╩╪╬╭╯╱╳╴╸╹╿■□▣▤▥▦▧▩▪▫▭▮▯▰▱▲△▵▶▷▹►▻▼▽▿◆◇◈"
    "◉◊○◌◍◎12456789#$%&@?!+{[<"
)
UNFROZEN = "PRE chosen, nothing frozen"
VARIANTS = ("NO PRETRAIN", "PRE random", "PRE chosen", "PRE chosen, near ones added", UNFROZEN)
COMPARED = (*itertools.pairwise(VARIANTS[:4]), ("PRE chosen", UNFROZEN), ("NO PRETRAIN", UNFROZEN))
CPU = Process(torch.device("cpu"))
NORMALIZE = normalizer((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
FLOAT32 = torch.float32
SOURCE = SourceRecipe(
    side=SIDE, patch=PATCH, batch=32, learning_rate=0.02, divisions=2, tolerance=0.02, patience=0, max_epochs=40
)
# With few pictures an epoch is a few steps, and the loss stands still for some of them before it falls.
SCRATCH = replace(SOURCE, batch=16, learning_rate=0.01, divisions=1, patience=10, max_epochs=300)
HEAD = Recipe(width=256, batch=16, round=1000, max_rounds=40, patience=2)


def draw_character(character: str, draw: np.random.Generator, fonts: Sequence[Path]) -> Image.Image:
    """One picture of a character: gray ``[SIDE, SIDE]``."""
    background, ink = draw.integers(0, 100), draw.integers(140, 256)
    canvas = Image.new("L", (SIDE, SIDE), int(background))
    pen = ImageDraw.Draw(canvas)
    for _ in range(draw.integers(2, 6)):  # strokes that belong to no character
        ends = draw.uniform(0, SIDE, 4).tolist()
        pen.line(ends, fill=int(background + draw.integers(0, 60)), width=int(draw.integers(1, 4)))
    font = ImageFont.truetype(str(fonts[int(draw.integers(len(fonts)))]), int(draw.integers(20, 31)))
    mask = Image.new("L", (SIDE, SIDE), 0)
    center = (SIDE / 2 + draw.uniform(-3, 3), SIDE / 2 + draw.uniform(-3, 3))
    ImageDraw.Draw(mask).text(center, character, fill=255, font=font, anchor="mm")
    mask = mask.rotate(draw.uniform(-15, 15), Image.Resampling.BILINEAR)
    canvas.paste(int(ink), mask=mask)
    noisy = np.asarray(canvas) + draw.normal(0, 12, (SIDE, SIDE))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def draw_tree(root: Path, characters: str, train: int, val: int, seed: int) -> SourceImages:
    """`train` and `val` pictures of each character, as files."""
    fonts = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*[!y].ttf"))
    fonts = [font for font in fonts if "Display" not in font.name]
    names = [f"{ord(character):06x}" for character in sorted(characters)]
    for name in names:
        draw = np.random.default_rng([seed, int(name, 16)])
        for part, pictures in (("train", train), ("val", val)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(pictures):
                draw_character(chr(int(name, 16)), draw, fonts).save(folder / f"{index:03}.png")
    return find_images(root, names)


def small_network(classes: int, seed: int) -> nn.Sequential:
    """The paper's network in small: convolutions with a stride, overlapping pools, FC6, FC7, FC8, dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.ReLU(),  # 16×16
            nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),  # 7×7
            nn.Conv2d(48, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),  # 3×3
            nn.Flatten(),
            nn.Linear(576, 256), nn.ReLU(), nn.Dropout(0.3),  # FC6
            nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.3),  # FC7
            nn.Linear(256, classes),  # FC8
        )  # fmt: skip
        for layer in network:
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # torch's own start takes long to learn from
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            network[-1].weight.normal_(std=0.01)  # type: ignore[operator]
        return network


def features(
    network: nn.Module, samples: Sequence[Sample], view: v2.Transform
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """The network's outputs for each view of each picture, ``[N·V, D]``, and its class."""
    rows, labels = [], []
    network.eval()
    with torch.inference_mode():
        for viewed in DataLoader(Views(samples, view), 128, collate_fn=collate):
            rows.append(network(NORMALIZE(viewed.pixels.flatten(0, 1))))
            labels.append(viewed.labels.repeat_interleave(viewed.pixels.shape[1]))
    return torch.cat(rows).numpy().astype(np.float16), torch.cat(labels).numpy()


def accuracy(network: nn.Module, samples: Sequence[Sample]) -> float:
    """By the patch in the middle of each picture."""
    scores, labels = features(network, samples, center_view(SIDE, PATCH))
    return float((scores.argmax(1) == labels).mean())


def few(target: SourceImages, shots: int) -> SourceImages:
    """The target with its first `shots` training pictures of each class, which are also its validation pictures."""
    samples = tuple(sample for sample in target.train if int(sample[0].stem) < shots)
    return replace(target, train=samples, val=samples)


def transfer(network: nn.Sequential, target: SourceImages, seed: int) -> nn.Module:
    """The network with FCa and FCb, trained on its frozen FC7 of ten views of each picture."""
    trunk, classes = network[:-1], len(target.classes)
    values, labels = features(trunk, target.train, ten_views(SIDE, PATCH))
    head: AdaptationHead = train_head(TrainingPatches(values, labels, np.arange(len(labels))), classes, HEAD, seed)
    return nn.Sequential(trunk, head)


def train_all(start: nn.Sequential | None, target: SourceImages, seed: int) -> nn.Module:
    """A network trained whole on the target, from another's layers but FC8, or from random weights.

    The training pictures' own loss steers the learning rate.
    """
    network = small_network(len(target.classes), seed)
    if start is not None:
        network[:-1].load_state_dict(start[:-1].state_dict())
    train_source(network, target, SCRATCH, CPU, normalize=NORMALIZE, precision=FLOAT32, seed=seed)
    return network


def source_characters(variant: str, seed: int) -> str:
    """The classes of a source; those of the last two variants go together."""
    draw = np.random.default_rng(seed)
    if variant == "PRE random":
        return "".join(draw.choice(list(NEAR + FAR), 40, replace=False))
    near = "".join(draw.permutation(list(NEAR)))
    far = "".join(draw.choice(list(FAR), 20, replace=False))
    return far + (near if variant == "PRE chosen, near ones added" else near[:20])


def run(variant: str, seed: int, target: SourceImages, folder: Path, pictures: int, shots: Sequence[int]) -> Row:
    """Pre-train, transfer and measure one variant."""
    start = time.perf_counter()
    record: Row = {"variant": variant, "seed": seed}
    network = None
    if variant != "NO PRETRAIN":
        characters = source_characters(variant, seed)
        source = draw_tree(folder, characters, pictures, pictures // 4, seed)
        network = small_network(len(source.classes), seed)
        epochs: list[Event] = []
        measured = train_source(
            network, source, SOURCE, CPU, normalize=NORMALIZE, precision=FLOAT32, seed=seed, callback=epochs.append
        )
        record |= {"classes": len(characters), "near": sum(map(NEAR.count, characters))}
        record |= {"epochs": epochs[-1].epoch + 1, "source_accuracy": measured.top1}
    for count in shots:
        part = few(target, count)
        if network is None or variant == UNFROZEN:
            trained = train_all(network, part, seed)
        else:
            trained = transfer(network, part, seed)
        record[f"accuracy_{count}"] = accuracy(trained, target.val)
        record[f"training_accuracy_{count}"] = accuracy(trained, part.train)
    return record | {"wall_s": round(time.perf_counter() - start, 1)}


def plot(results: Row, path: Path) -> None:
    """Every run a dot, the variants' means side by side for each number of training pictures."""
    figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    for column, variant in enumerate(VARIANTS):
        runs = [record for record in results["runs"] if record["variant"] == variant]
        for group, shots in enumerate(results["shots"]):
            values = [record[f"accuracy_{shots}"] for record in runs]
            x, label = group + 0.16 * (column - 2), variant if group == 0 else None
            axes.bar(x, np.mean(values) if values else 0, width=0.14, color=f"C{column}", alpha=0.35, label=label)
            axes.plot(x + np.linspace(-0.05, 0.05, len(values)), values, "o", color=f"C{column}", ms=3.5)
    axes.set_xticks(range(len(results["shots"])), [str(shots) for shots in results["shots"]])
    axes.set_xlabel("training pictures of each target class")
    axes.axhline(1 / len(TARGET), color="0.5", lw=1, ls=":")
    axes.text(0.5, 1 / len(TARGET) + 0.01, "chance", color="0.3", fontsize=8, ha="center")
    axes.set_ylabel("target accuracy")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(results: Row) -> str:
    """The results as Markdown."""
    shots, lines, compared = results["shots"], [], []
    runs = {name: {run["seed"]: run for run in results["runs"] if run["variant"] == name} for name in VARIANTS}

    # Accuracy by variant
    for variant, by_seed in runs.items():
        if not by_seed:
            continue
        records = list(by_seed.values())
        cells = [str(len(records))]
        for key, digits in (("classes", 0), ("near", 0), ("source_accuracy", 3)):
            cells.append(f"{np.mean([run[key] for run in records]):.{digits}f}" if key in records[0] else "")
        for count in shots:
            values = [run[f"accuracy_{count}"] for run in records]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} … {max(values):.3f})")
        lines.append((variant, *cells))

    # Gains of one variant over another, seed by seed
    for base, variant in COMPARED:
        first, second = runs[base], runs[variant]
        cells = []
        for key in (f"accuracy_{count}" for count in shots):
            gains = [second[seed][key] - first[seed][key] for seed in first.keys() & second.keys()]
            cells.append(f"{sum(gain > 0 for gain in gains)} of {len(gains)} ({np.mean(gains):+.3f})" if gains else "")
        if any(cells):
            compared.append((f"{variant} over {base}", *cells))
    pictures = [f"{count} pictures" for count in shots]
    total = sum(record["wall_s"] for record in results["runs"])
    lead = (
        f"{len(TARGET)} Cyrillic letters, {TEST * len(TARGET)} test pictures; {results['count']} training pictures of "
        f"each source class. Each seed has its own source classes and pictures. {total:.0f} s in all, on a share of a "
        "busy core. Mean over the seeds (lowest … highest)."
    )
    return (
        "# A miniature of Table 2\n\nMade by `python benchmarks/source_classes_mini.py`; numbers are of "
        f"`source_classes_mini.json`. {lead}\n\n![Accuracy of the variants](source_classes_mini.png)\n\n"
        + markdown(("", "seeds", "source classes", "near ones among them", "source accuracy", *pictures), lines)
        + "\nIn how many seeds one is better than the other, and by how much on average:\n\n"
        + markdown(("", *pictures), compared)
    )


def write(results: Row, folder: Path) -> None:
    """The results as numbers, table and picture."""
    base = folder / "source_classes_mini"
    write_json(base.with_suffix(".json"), results)
    write_text(base.with_suffix(".md"), table(results))
    with atomic_write(base.with_suffix(".png"), overwrite=True) as temporary:
        plot(results, temporary)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--first-seed", type=int, default=0)
    arguments.add_argument("--count", type=int, default=100, help="training pictures of each source class")
    arguments.add_argument("--shots", default="3,10", help="training pictures of each target class")
    arguments.add_argument("--results", type=Path, default=RESULTS)
    options = arguments.parse_args()
    shots = [int(count) for count in options.shots.split(",")]
    settings: Row = {"torch": torch.__version__, "count": options.count, "shots": shots}
    settings |= {"source": asdict(SOURCE), "scratch": asdict(SCRATCH)}
    path = options.results / "source_classes_mini.json"
    results: Row = read_json(path, {})
    if any(results.get(name) != value for name, value in settings.items()):
        results = {**settings, "runs": []}
    done = {(record["variant"], record["seed"]) for record in results["runs"]}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            target = draw_tree(Path(folder) / "target", TARGET, max(shots), TEST, 1000 + seed)
            for variant in VARIANTS:
                if (variant, seed) not in done:
                    record = run(variant, seed, target, Path(folder) / variant, options.count, shots)
                    results["runs"].append(record)
                    print(record, flush=True)
                    write(results, options.results)


if __name__ == "__main__":
    main()
