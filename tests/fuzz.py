"""Malformed images, arguments and weights files: each is a DensescoreError or a valid result.

    python -m tests.fuzz --count 20000                 # about twenty thousand inputs; prints what came of them

Inputs are drawn in a child process, a thousand at a time, from seeds that are printed where one fails, so that a crash
or a hang (20 s of processor time for one input) is caught and can be run again: `--seed S --count 1`.
"""

import io
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from safetensors.torch import save
from typer.testing import CliRunner

from densescore import DensescoreError, DenseScorer, Pyramid, read_image
from densescore.cli import main as cli
from densescore.data.boxed_set import Labels, boxed_part
from densescore.data.load import load_set
from densescore.models import MODELS, AdaptationHead, load_head
from densescore.models.adaptation import HeadFile, save_head
from densescore.models.registry import ModelEntry
from densescore.models.weights import read_weights
from densescore.results.scores import DenseScores
from tests.conftest import Toy
from tests.data.exports import cvat_coco, labelimg, roboflow_coco, yolo
from tests.data.voc_set import write_voc

if TYPE_CHECKING:
    from tests.demo.fuzz_page import PageFuzz

SECONDS = 20
MOST_GROWTH = 1500  # MB: a picture at Pillow's limit is 540 MB as RGB, and is copied once
PER_PROCESS = 1000

NUMBERS = (0, 1, -1, 2, 0.5, 5, 1e-9, 1e9, 1e300, float("inf"), float("-inf"), float("nan"), 224, 2**31, 2**63, 10**30)
TEXTS = (
    "",
    " ",
    "1",
    "1,2",
    "1,,2",
    "nan",
    "inf",
    "-1",
    "0",
    "1e9",
    "1e400",
    "x",
    "é",
    "1;2",
    "٣",
    "\x00",
    "💣",
    "--",
    "1 2",
)

Source = random.Random


class Bomb:
    """Unpickled, it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


class Fuzz:
    """One kind of input per method; each returns ``"valid"`` or ``"refused"``, and raises on anything else."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, folder / "executed"
        MODELS["toy"] = ModelEntry(
            "toy", lambda state: _toy(state), lambda: Toy().state_dict(), "MIT", "tests", patch_size=20, scales=(1, 1.5)
        )
        self.scorer = DenseScorer("toy", runtime="torch")
        self._page: PageFuzz | None = None
        pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
        self.encoded = []
        for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, kind)
            self.encoded.append(file.getvalue())
        file = io.BytesIO()
        Image.fromarray((pixels[..., 0] * np.uint32(256)).astype(np.uint16)).save(file, "PNG")
        self.encoded += [file.getvalue(), b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\x00"]
        self.photo = folder / "photo.png"
        self.photo.write_bytes(self.encoded[0])
        self.seeds = [save(Toy().state_dict())]
        save_head(folder / "head.safetensors", HeadFile(
            AdaptationHead(10, 2, width=4), ("x", "y"), "toy", (0.5,) * 3, (0.5,) * 3, 20))  # fmt: skip
        self.seeds.append((folder / "head.safetensors").read_bytes())
        self.scorer.score(pixels).save(folder / "scores.safetensors")
        self.seeds.append((folder / "scores.safetensors").read_bytes())
        file = io.BytesIO()
        torch.save(Toy().state_dict(), file)
        self.seeds.append(file.getvalue())
        self.sets = list[tuple[Path, Path]]()
        for make in (roboflow_coco, cvat_coco, labelimg, yolo, lambda root: write_voc(root, {"train": 3})):
            root = make(folder / f"set-{len(self.sets)}")
            self.sets += [(root, path) for path in sorted(root.rglob("*")) if path.is_file()]

    def run(self, seed: int) -> str:
        """One input; the same seed, the same input."""
        source = random.Random(seed)
        kinds = [self.image, self.array, self.geometry, self.command, self.weights, self.data_set]
        if find_spec("fastapi") is not None:  # the extra demo
            kinds.append(self.page)
        kind = kinds[seed % len(kinds)]
        try:
            kind(source)
            return f"{kind.__name__}: valid"
        except DensescoreError as error:
            if not str(error):
                raise AssertionError("an error without a word") from error
            return f"{kind.__name__}: refused"
        finally:
            assert not self.mark.exists(), "a file was executed"

    def image(self, source: Source) -> None:
        """Encoded pictures with bytes changed, cut, doubled or swapped; headers that claim a huge size."""
        data = _mutated(source.choice(self.encoded), source)
        if source.random() < 0.05:  # a PNG of any size, with a few bytes of pixels
            size = struct.pack(
                ">II5B", *(source.choice((0, 1, 9000, 12000, 2**31 - 1)) for _ in range(2)), 8, 2, 0, 0, 0
            )
            chunk = b"IHDR" + size
            end = struct.pack(">I", 4) + b"IDAT" + b"\x78\x9c\x03\x00" + b"\x00" * 4
            data = b"\x89PNG\r\n\x1a\n\x00\x00\x00\r" + chunk + struct.pack(">I", zlib.crc32(chunk)) + end
        pixels = read_image(data)
        assert pixels.ndim == 3, pixels.shape
        assert pixels.dtype in (np.uint8, np.float32)
        if pixels.size < 10**6:
            self._check(self.scorer.score(pixels))

    def array(self, source: Source) -> None:
        """Arrays and tensors of any shape, dtype and values."""
        shape = tuple(source.choice((0, 1, 2, 3, 4, 5, 30, 61)) for _ in range(source.randrange(5)))
        if source.random() < 0.5:
            shape = (source.randrange(1, 70), source.randrange(1, 70), source.choice((1, 3, 3, 4)))
        kinds: tuple[Any, ...] = (
            np.uint8,
            np.int8,
            np.uint16,
            np.int64,
            np.float16,
            np.float32,
            np.float64,
            bool,
            complex,
        )
        with np.errstate(all="ignore"):
            values: Any = np.full(shape, source.choice((*NUMBERS[:6], 0.25, 200, *NUMBERS[9:12]))).astype(
                source.choice(kinds)
            )
        if source.random() < 0.3 and values.dtype != np.uint16:
            values = torch.from_numpy(values)
        self._check(self.scorer.score(values))

    def geometry(self, source: Source) -> None:
        """Sizes, scales, strides and limits out of any range."""
        some = [source.choice(NUMBERS) for _ in range(source.randrange(4))]
        whole = [int(source.choice((0, 1, -5, 7, 100, 640, 10**9))) for _ in range(2)]
        options: dict[str, Any] = {source.choice(("scales", "patch_sizes")): some}
        patch, stride = (source.choice((1, 20, 224, 0, -3, 10**9)) for _ in range(2))
        pyramid = Pyramid.of(*whole, patch=patch, stride=stride, **options)
        assert 1 <= len(pyramid) <= 100_000
        assert np.isfinite(pyramid.boxes()).all()
        keys = source.sample(["k", "scales", "patch_sizes", "stride", "patch_size", "max_cells", "mean", "std"], 2)
        given: dict[str, Any] = {}
        for key in keys:
            given[key] = source.choice(NUMBERS) if key == "k" else some or (1,)
            if key in ("stride", "patch_size", "max_cells"):
                given[key] = source.choice((0, 1, 2, 3, 4, -4, 20, 21, 10**9))
        self._check(DenseScorer("toy", runtime="torch", **given).score(np.zeros((30, 41, 3), np.uint8)))

    def command(self, source: Source) -> None:
        """Words on the command line."""
        options = [f"--{name}" for name in (
            "scales", "patch-sizes", "k", "top", "device", "dtype", "runtime", "context", "weights", "stride", "model"
        )]  # fmt: skip
        words = ["classify", str(self.photo), "--json"]
        for option in source.sample(options, source.randrange(1, 4)):
            words += [
                option,
                source.choice((*TEXTS, *map(str, NUMBERS), str(self.photo), str(self.folder), "toy", "cpu")),
            ]
        result = CliRunner().invoke(cli.app, [*words, *(() if "--model" in words else ("--model", "toy"))])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code not in (0, 1, 2):
            raise AssertionError(f"{words} ended with {result.exit_code}")
        if result.exit_code:
            raise DensescoreError(result.stderr)

    def weights(self, source: Source) -> None:
        """Weights, heads and saved scores: bytes changed; pickles that would run something."""
        seed = source.randrange(len(self.seeds))
        path = self.folder / f"weights{'.pth' if seed == len(self.seeds) - 1 else '.safetensors'}"
        if source.random() < 0.1:
            path = path.with_suffix(source.choice((".pt", ".safetensors", ".bin")))
        data = _mutated(self.seeds[seed], source)
        if source.random() < 0.2:
            bomb = {"features.0.weight": Bomb(self.mark)}
            file = io.BytesIO()
            if source.random() < 0.5:
                torch.save(bomb, file)
            else:
                pickle.dump(bomb, file, protocol=source.choice((0, 2, 4)))
            data = file.getvalue()
        path.write_bytes(data)
        readers = (read_weights, load_head, DenseScores.load, self._load)
        own = {0: read_weights, 1: source.choice((load_head, self._load)), 2: DenseScores.load}.get(seed, self._load)
        reader = own if source.random() < 0.7 else source.choice(readers)
        reader(path)

    def page(self, source: Source) -> None:
        """Requests to the page and the HTTP call: bytes changed, forms, queries."""
        if self._page is None:
            from tests.demo.fuzz_page import PageFuzz

            self._page = PageFuzz(self.scorer, self.encoded, _mutated)
        self._page.send(source)

    def close(self) -> None:
        """End what inputs have begun."""
        if self._page is not None:
            self._page.close()

    def data_set(self, source: Source) -> None:
        """Data sets in which a file's bytes are changed."""
        root, path = source.choice(self.sets)
        content = path.read_bytes()
        path.write_bytes(_mutated(content, source))
        labels: Labels = source.choice(("auto", "image", "box", "both"))
        share = source.choice((None, 0.5))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # boxes that were clipped
                loaded = load_set(root, "train", labels=labels, val_share=share)
        finally:
            path.write_bytes(content)
        assert loaded.truth().shape == (len(loaded.images), len(loaded.classes))
        for image in boxed_part(loaded).images:
            assert (image.boxes[:, :2] < image.boxes[:, 2:]).all()
            assert (image.boxes >= 0).all()
            assert (image.boxes[:, 2:] <= [image.width, image.height]).all()

    def _load(self, path: Path) -> None:
        if path.suffix == ".safetensors":
            self._check(DenseScorer(path, runtime="torch").score(np.zeros((30, 41, 3), np.uint8)))
        else:
            self._check(DenseScorer("toy", weights=path, runtime="torch").score(np.zeros((30, 41, 3), np.uint8)))

    @staticmethod
    def _check(scores: DenseScores) -> None:
        assert torch.isfinite(scores.patch_scores).all()
        assert ((scores.patch_scores >= 0) & (scores.patch_scores <= 1)).all()
        assert len(scores.patch_scores) == len(scores.boxes) > 0


def _toy(state: dict[str, torch.Tensor] | None) -> Toy:
    from densescore.models.weights import load_strict

    toy = Toy()
    if state is not None:
        load_strict(toy, state, "toy")
    return toy


def _mutated(data: bytes, source: Source) -> bytes:
    changed = bytearray(data)
    for _ in range(source.choice((0, 1, 1, 2, 5, 40))):
        if not changed:
            break
        at = source.randrange(len(changed))
        match source.randrange(5):
            case 0:
                changed[at] ^= 1 << source.randrange(8)
            case 1:
                changed[at : at + 4] = source.choice(
                    (b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", source.randbytes(4))
                )
            case 2:
                del changed[at:]
            case 3:
                changed[at:at] = changed[: source.randrange(200)]
            case 4:
                changed[at : at + source.randrange(50)] = source.randbytes(source.randrange(50))
    return bytes(changed)


def run_some(first: int, count: int) -> Counter[str]:
    """Inputs of the seeds ``first …``, in this process.

    Raises:
        Exception: what an input raised that was no DensescoreError; its seed is noted.
    """

    def too_long(signum: int, frame: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.signal(signal.SIGPROF, too_long)
        for seed in range(first, first + count):
            print(seed, file=sys.stderr)  # the last line names the input that a crash came from
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                found[fuzz.run(seed)] += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        fuzz.close()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000
        assert grown < MOST_GROWTH, f"seeds {first}..{first + count - 1} took {grown} MB more"
        found["most MB"] = grown
    return found


def main(
    count: Annotated[int, typer.Option(help="Inputs.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of the first input.")] = 0,
) -> None:
    """Run a fuzz campaign; exits with 1 if an input failed."""
    total: Counter[str] = Counter()
    failures = 0
    for first in range(seed, seed + count, PER_PROCESS):
        some = min(PER_PROCESS, seed + count - first)
        child = f"from tests.fuzz import run_some; print(dict(run_some({first}, {some})))"
        try:
            done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=some * SECONDS)
        except subprocess.TimeoutExpired as error:
            raise typer.Exit(1) from error
        if done.returncode:
            failures += 1
            print(f"after seed {first}, code {done.returncode}: {done.stderr[-3000:]}", flush=True)
            continue
        counts = Counter(eval(done.stdout, {}))
        most = max(total["most MB"], counts.pop("most MB"))
        total.update(counts)
        total["most MB"] = most
        print(f"{first + some - seed} of {count}: {dict(sorted(total.items()))}", flush=True)
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    typer.run(main)
