"""Run the steps of a table. Each step writes a file, and is skipped if its file exists."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from densescore.data.boxed_set import BoxedSet
from densescore.data.load import load_boxed
from densescore.errors import DensescoreError
from densescore.evaluation.evaluate import evaluate_classes, mean_of, score_set
from densescore.io.checkpoint import checkpoint_folder
from densescore.io.files import atomic_write
from densescore.io.names import to_json
from densescore.models.head import HeadFile, save_head
from densescore.models.registry import load_classifier
from densescore.paper.actions.evaluation import evaluate_persons, mean_ap
from densescore.paper.actions.network import ActionRecipe, Retrain, load_actions, save_actions
from densescore.paper.actions.training import read_patches, run_frozen, score_persons, train_persons
from densescore.paper.actions.voc import read_actions
from densescore.paper.from_scratch import train_from_scratch
from densescore.paper.pretrain import SourceRecipe
from densescore.paper.pretrain.images import available_classes, find_images
from densescore.paper.pretrain.process import Process
from densescore.paper.pretrain.source_classes import DEFAULT_WORDNET, PRESETS, WordNet, choose, differences_from_paper
from densescore.paper.pretrain.training import Event, pretrain_krizhevsky
from densescore.paper.reproduce.tables import SOURCES, TABLES, PaperRow, PaperTable, as_markdown, as_record
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.feature_cache import DEFAULT_BYTES, FeatureCache
from densescore.transfer.pipeline import cached_scores, train_model
from densescore.transfer.recipe import RECIPES, Recipe

MODEL = "krizhevsky"
_RETRAIN: dict[str, Retrain] = {"transfer": "none", "retrained": "last", "scratch": "all"}


@dataclass(frozen=True)
class Sizes:
    """Sizes of every step."""

    classes: dict[str, str]  # by source, as `choose` takes them
    widths: dict[str, int]  # by source, of FC6 and FC7
    source: SourceRecipe
    transfer: Recipe  # of FCa and FCb for objects
    actions: ActionRecipe  # its `retrain` follows from the row
    crops: int  # that NO PRETRAIN is trained on for objects
    remark: str = ""  # above each table


PAPER = Sizes(
    classes={name: PRESETS[preset] for name, preset in SOURCES.items()},
    widths={"PRE-1000C": 4096, "PRE-1000R": 4096, "PRE-1512": 6144}, source=SourceRecipe(), transfer=RECIPES["paper"],
    actions=ActionRecipe(), crops=5_000_000,
)  # fmt: skip

SMOKE = Sizes(
    classes={"PRE-1000C": "n00000001,n00000002", "PRE-1000R": "random:2:0", "PRE-1512": "all"},
    widths={"PRE-1000C": 24, "PRE-1000R": 24, "PRE-1512": 32},
    source=SourceRecipe(batch=4, max_epochs=1, divisions=0),
    transfer=replace(
        RECIPES["paper"], scales=(1.0, 1.5), background=1.0, width=16, batch=8, round=64, max_rounds=1, standardize=True
    ),
    actions=ActionRecipe(epochs=1, batch=4, width=16),
    crops=8,
    remark="**A smoke test on pictures drawn for it: the numbers mean nothing.**",
)


@dataclass(frozen=True)
class Chain:
    """The steps of all tables."""

    plan: Sizes
    data: dict[str, Path]  # folders of "imagenet", "voc07" and "voc12"
    work: Path  # folder of all files
    device: torch.device
    workers: int = 4  # processes that read images in pre-training
    cache_bytes: int = DEFAULT_BYTES
    seed: int = 0
    wordnet: Path = DEFAULT_WORDNET
    say: Callable[[str], None] = lambda _: None  # called with a line at every step
    callback: Callable[[Event], None] = lambda _: None  # called with the events of pre-training

    def table(self, number: int) -> dict[str, float]:
        """Measure a table's rows, mean AP in [0, 1] by row; writes ``table<number>.md`` and ``.json`` after each row.

        Files of another seed or plan in `work` raise an error.
        """
        self._claim()
        table = TABLES[number]
        measured: dict[str, float] = {}
        for row in table.rows:
            file = self._file(number, row, ".json")
            if not file.is_file():
                self.say(f"table {number}, {row.name}: train and measure")
                value = self._action_row(row, table) if number == 3 else self._object_row(number, row, table)
                self._write(file, to_json({"row": row.name, "map": value, "seed": self.seed}) + "\n")
            measured[row.name] = json.loads(file.read_text())["map"]
            self._write(self.work / f"table{number}.md", as_markdown(number, measured, self.plan.remark))
            self._write(self.work / f"table{number}.json", to_json(as_record(number, measured), indent=1) + "\n")
        return measured

    def source(self, name: str) -> Path:
        """The file of a source network, pre-trained now or earlier (by ``densescore pretrain`` on many devices)."""
        path = self.work / f"{name.lower()}.safetensors"
        if path.is_file():
            return path
        folder = self._folder("imagenet")
        choice = choose(self.plan.classes[name], available_classes(folder), lambda: WordNet(self.wordnet))
        images = find_images(folder, choice.wnids)
        for difference in differences_from_paper(choice):
            self.say(f"unlike the paper: {difference}")
        self.say(f"{name}: pre-train on {len(images.classes):,} classes, {len(images.train):,} images")
        pretrain_krizhevsky(
            path, images, self.plan.source, Process(self.device),
            width=self.plan.widths[name], seed=self.seed, workers=self.workers, callback=self.callback,
        )  # fmt: skip
        return path

    def _claim(self) -> None:
        """Record the settings of the files in `work`, or refuse other settings than the recorded ones."""
        file = self.work / "reproduce.json"
        settings = to_json({"seed": self.seed, "plan": asdict(self.plan)}, indent=1) + "\n"
        if not file.is_file():
            if (other := next(self.work.glob("table*"), None)) is not None:
                raise DensescoreError(
                    f"{other}: exists already, and no {file.name} says what it is; choose another --output"
                )
            self._write(file, settings)
        elif file.read_text() != settings:
            raise DensescoreError(
                f"{self.work}: by {file.name}, holds files of another seed or size (with --smoke or without); choose "
                "another --output"
            )

    def _object_row(self, number: int, row: PaperRow, table: PaperTable) -> float:
        # Train
        folder, path = self._voc(table), self._file(number, row, ".safetensors")
        source = None if row.source is None else self.source(row.source)
        if not path.is_file():
            boxed = load_boxed(folder, table.train, need_positives=True)
            with checkpoint_folder(path) as checkpoint:
                save_head(path, self._train_objects(boxed, source, checkpoint))

        # Measure
        scorer = DenseScorer(path, weights=source or "default", device=self.device)
        score = cached_scores(scorer, self._cache(scorer))
        rows = evaluate_classes(score_set(load_boxed(folder, table.test), score, (scorer.k,)), scorer.k)
        value = mean_of(rows, "ap_2007" if table.data == "voc07" else "ap")
        if value is None:
            raise DensescoreError(f"{folder}: no class has a positive image in {table.test}")
        return value

    def _train_objects(self, boxed: BoxedSet, source: Path | None, checkpoint: Path) -> HeadFile:
        recipe = self.plan.transfer
        if source is None:
            return train_from_scratch(
                boxed, MODEL, recipe, self.seed, crops=self.plan.crops, device=self.device, checkpoint=checkpoint
            )
        scorer = DenseScorer(MODEL, weights=source, scales=recipe.scales, device=self.device)
        return train_model(boxed, scorer, self._cache(scorer), recipe, self.seed)

    def _action_row(self, row: PaperRow, table: PaperTable) -> float:
        # Train
        folder, path = self._voc(table), self._file(3, row, ".safetensors")
        source = None if row.source is None else self.source(row.source)
        if not path.is_file():
            recipe = replace(self.plan.actions, retrain=_RETRAIN[row.method])
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)  # of a network without weights
                classifier = load_classifier(MODEL, weights=source)
            actions = read_actions(folder, table.train)
            network, labels = train_persons(actions, classifier, recipe, self.seed, device=self.device)
            save_actions(path, network, labels, MODEL, classifier.patch_size, recipe, {"seed": self.seed})

        # Measure
        network, labels, classifier, recipe = load_actions(path, source or "default")
        actions = read_actions(folder, table.test)
        patches = read_patches(actions, classifier.patch_size, recipe.margin)
        scores = score_persons(network, run_frozen(network.to(self.device), patches))
        return mean_ap(evaluate_persons(actions, scores, labels))

    def _file(self, number: int, row: PaperRow, suffix: str) -> Path:
        return self.work / f"table{number}-{row.name.replace(' ', '-').lower()}{suffix}"

    def _cache(self, scorer: DenseScorer) -> FeatureCache:
        return FeatureCache(scorer, self.work / "features", max_bytes=self.cache_bytes)

    def _voc(self, table: PaperTable) -> Path:
        """The folder of the table's year, where several lie side by side."""
        folder = self._folder(table.data)
        candidates = [folder / table.year, folder / "VOCdevkit" / table.year]
        return next((path for path in candidates if path.is_dir()), folder)

    def _folder(self, name: str) -> Path:
        if name not in self.data:
            raise DensescoreError(f"--{name}: this table needs it")
        return self.data[name]

    def _write(self, path: Path, text: str) -> None:
        with atomic_write(path, overwrite=True) as temporary:
            temporary.write_text(text)


# Stand-ins for ImageNet and VOC that `SMOKE` is run on

COLORS = ((220, 60, 60), (60, 200, 60), (60, 80, 230))
OBJECTS, ACTIONS = ("disc", "square"), ("running", "sitting")
HEIGHT, WIDTH = 96, 128


def draw_all(root: Path) -> dict[str, Path]:
    """Write colored discs and squares in the layouts of the real sets; their folders, as `Chain.data`."""
    draw = np.random.default_rng(0)
    for index in range(len(COLORS)):
        for number in range(8):
            folder = root / "imagenet" / "train" / f"n{index + 1:08}"
            folder.mkdir(parents=True, exist_ok=True)
            _picture(draw, index, index % 2, (24, 8, 104, 88)).save(folder / f"{number}.jpg")
    for year, sets in (("VOC2007", {"trainval": 6, "test": 4}), ("VOC2012", {"train": 6, "val": 4})):
        for split, count in sets.items():
            _write_voc(root / "voc" / year, split, count, draw)
    return {"imagenet": root / "imagenet", "voc07": root / "voc", "voc12": root / "voc"}


def _picture(draw: np.random.Generator, color: int, shape: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A noisy picture with a shape that fills its box."""
    x0, y0, x1, y1 = box
    rows, cols = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    u, v = (cols - (x0 + x1) / 2) * 2 / (x1 - x0), (rows - (y0 + y1) / 2) * 2 / (y1 - y0)  # in [-1, 1] inside
    inside: NDArray[np.bool_] = np.hypot(u, v) < 1 if shape == 0 else np.maximum(abs(u), abs(v)) < 1
    pixels = draw.normal(128, 30, (HEIGHT, WIDTH, 3))
    pixels[inside] = np.array(COLORS[color]) + draw.normal(0, 20, (int(inside.sum()), 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _write_voc(voc: Path, split: str, count: int, draw: np.random.Generator) -> None:
    """A split of pictures with one object each, which is also a person of one action."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main", "ImageSets/Action"):
        (voc / name).mkdir(parents=True, exist_ok=True)
    names = [f"{split}_{index:03}" for index in range(count)]
    for index, name in enumerate(names):
        box = (40, 16, 112, 88)  # the object fills a patch of half to the whole short side
        _picture(draw, index % 2, index % 2, box).save(voc / "JPEGImages" / f"{name}.jpg")
        x0, y0, x1, y1 = box
        (voc / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size><object>"
            f"<name>{OBJECTS[index % 2]}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
            f"<ymax>{y1}</ymax></bndbox><difficult>0</difficult></object></annotation>"
        )
    for task, labels, person in (("Main", OBJECTS, ""), ("Action", ACTIONS, " 1")):
        sets = voc / "ImageSets" / task
        (sets / f"{split}.txt").write_text("".join(f"{name}{person}\n" for name in names))
        for column, label in enumerate(labels):
            rows = (f"{name}{person} {1 if index % 2 == column else -1}\n" for index, name in enumerate(names))
            (sets / f"{label}_{split}.txt").write_text("".join(rows))
