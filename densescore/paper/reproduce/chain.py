"""Run the steps of a table. Each step writes a file, and is skipped if its file exists."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from densescore.data.boxed_set import BoxedSet
from densescore.data.load import load_boxed
from densescore.errors import DensescoreError
from densescore.evaluation.evaluate import evaluate_classes, mean_of, score_set
from densescore.io.checkpoint import checkpoint_folder
from densescore.io.files import atomic_write
from densescore.models.adaptation import HeadFile, save_head
from densescore.models.registry import load_classifier
from densescore.paper.actions.evaluation import evaluate_persons, mean_ap
from densescore.paper.actions.file import load_actions, save_actions
from densescore.paper.actions.network import Retrain
from densescore.paper.actions.training import read_patches, run_frozen, score_persons, train_persons
from densescore.paper.actions.voc import read_actions
from densescore.paper.pretrain.distributed import Process
from densescore.paper.pretrain.images import available_classes, find_images
from densescore.paper.pretrain.pipeline import pretrain_krizhevsky
from densescore.paper.pretrain.source_classes import choose, differences_from_paper
from densescore.paper.pretrain.training import Event
from densescore.paper.pretrain.wordnet import DEFAULT_WORDNET, WordNet
from densescore.paper.reproduce.plan import Sizes
from densescore.paper.reproduce.tables import TABLES, PaperRow, PaperTable, as_markdown, as_record
from densescore.scoring.scorer import DenseScorer
from densescore.transfer.feature_cache import DEFAULT_BYTES, FeatureCache
from densescore.transfer.from_scratch import train_from_scratch
from densescore.transfer.pipeline import cached_scores, train_model

MODEL = "krizhevsky"
_RETRAIN: dict[str, Retrain] = {"transfer": "none", "retrained": "last", "scratch": "all"}


@dataclass(frozen=True)
class Chain:
    """All that the steps share.

    Attributes:
        plan: sizes.
        data: folders by name: ``"imagenet"``, ``"voc07"``, ``"voc12"``.
        work: folder for all files.
        device: to work on.
        workers: processes that read images in pre-training.
        cache_bytes: most that cached features may take.
        seed: of every step.
        wordnet: folder of WordNet 3.0.
        say: called with a line at every step.
        callback: called with the events of pre-training.
    """

    plan: Sizes
    data: dict[str, Path]
    work: Path
    device: torch.device
    workers: int = 4
    cache_bytes: int = DEFAULT_BYTES
    seed: int = 0
    wordnet: Path = DEFAULT_WORDNET
    say: Callable[[str], None] = lambda _: None
    callback: Callable[[Event], None] = lambda _: None

    def table(self, number: int) -> dict[str, float]:
        """Measure a table's rows and write ``table<number>.md`` and ``.json``, again after each row.

        Returns:
            Mean AP in [0, 1] by row.

        Raises:
            DensescoreError: `work` holds the files of another seed or plan; or data are missing.
        """
        self._claim()
        table = TABLES[number]
        measured: dict[str, float] = {}
        for row in table.rows:
            file = self.work / f"table{number}-{row.name.replace(' ', '-').lower()}.json"
            if not file.is_file():
                self.say(f"table {number}, {row.name}: train and measure")
                value = self._action_row(row, table) if number == 3 else self._object_row(number, row, table)
                self._write(file, json.dumps({"row": row.name, "map": value, "seed": self.seed}) + "\n")
            measured[row.name] = json.loads(file.read_text())["map"]
            self._write(self.work / f"table{number}.md", as_markdown(number, measured, self.plan.remark))
            self._write(self.work / f"table{number}.json", json.dumps(as_record(number, measured), indent=1) + "\n")
        return measured

    def source(self, name: str) -> Path:
        """The file of a source network, pre-trained now or earlier: by ``densescore pretrain`` on many devices, say."""
        path = self.work / f"{name.lower()}.safetensors"
        if path.is_file():
            return path
        folder = self._folder("imagenet")
        choice = choose(self.plan.classes[name], available_classes(folder), lambda: WordNet(self.wordnet))
        images = find_images(folder, choice.wnids)
        for difference in differences_from_paper(choice):
            self.say(f"unlike the paper: {difference}")
        self.say(f"{name}: pre-train on {len(images.classes):,} classes, {len(images.train):,} images")
        process, width = Process(self.device), self.plan.widths[name]
        options = {"width": width, "seed": self.seed, "workers": self.workers}
        pretrain_krizhevsky(path, images, self.plan.source, process, callback=self.callback, **options)  # type: ignore[arg-type]
        return path

    def _claim(self) -> None:
        """Record the settings of the files in `work`, and refuse to mix in others."""
        file = self.work / "reproduce.json"
        settings = json.dumps({"seed": self.seed, "plan": asdict(self.plan)}, indent=1) + "\n"
        if not file.is_file():
            if (other := next(self.work.glob("table*"), None)) is not None:
                raise DensescoreError(
                    f"{other}: exists already, and no {file.name} says what it is; choose another --out"
                )
            self._write(file, settings)
        elif file.read_text() != settings:
            raise DensescoreError(
                f"{self.work}: by {file.name}, holds files of another seed or size (with --smoke or without); choose "
                "another --out"
            )

    def _object_row(self, number: int, row: PaperRow, table: PaperTable) -> float:
        folder = self._voc(table)
        path = self.work / f"table{number}-{row.name.replace(' ', '-').lower()}.safetensors"
        source = None if row.source is None else self.source(row.source)
        if not path.is_file():
            boxed = load_boxed(folder, table.train, need_positives=True)
            with checkpoint_folder(path) as checkpoint:
                save_head(path, self._train_objects(boxed, source, checkpoint))
        scorer = DenseScorer(path, weights=source or "default", device=self.device)
        score = cached_scores(scorer, FeatureCache(scorer, self.work / "features", max_bytes=self.cache_bytes))
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
        cache = FeatureCache(scorer, self.work / "features", max_bytes=self.cache_bytes)
        return train_model(boxed, scorer, cache, recipe, self.seed, checkpoint=checkpoint)

    def _action_row(self, row: PaperRow, table: PaperTable) -> float:
        folder = self._voc(table)
        path = self.work / f"table3-{row.name.replace(' ', '-').lower()}.safetensors"
        source = None if row.source is None else self.source(row.source)
        if not path.is_file():
            recipe = replace(self.plan.actions, retrain=_RETRAIN[row.method])
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)  # of a network without weights
                classifier = load_classifier(MODEL, weights=source)
            actions = read_actions(folder, table.train)
            network, labels = train_persons(actions, classifier, recipe, self.seed, device=self.device)
            save_actions(path, network, labels, MODEL, classifier.patch_size, recipe, {"seed": self.seed})
        network, labels, classifier, recipe = load_actions(path, source or "default")
        actions = read_actions(folder, table.test)
        patches = read_patches(actions, classifier.patch_size, recipe.margin)
        scores = score_persons(network.to(self.device), run_frozen(network, patches, self.device), self.device)
        return mean_ap(evaluate_persons(actions, scores, labels))

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
