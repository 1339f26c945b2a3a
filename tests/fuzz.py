"""Malformed images, arguments, data sets and weights: each gives a DensescoreError or a valid result.

    python -m tests.fuzz --count 20000

Child processes draw a thousand inputs each, so that a crash or a hang (20 s of processor time for an input) is caught.
A failure prints its seed, to be run again by `--seed S --count 1`.
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
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from densescore import DensescoreError, DenseScorer, Pyramid, read_image
from densescore.cli import main as cli
from densescore.data.boxed_set import Labels
from densescore.data.load import load_set
from densescore.io.video import close_videos, frame_names, read_frame, split_frame_name
from densescore.models.head import AdaptationHead, HeadFile, load_head, save_head
from densescore.models.registry import MODELS, ModelEntry
from densescore.models.weights import load_strict, read_weights
from densescore.results.scores import DenseScores
from tests.cli.runner import CliRunner
from tests.conftest import Toy
from tests.data.exports import check_boxes, cvat_coco, labelimg, roboflow_coco, yolo
from tests.data.test_exports import TURNED
from tests.data.voc_set import write_voc
from tests.io.clips import numbered, write_clip

if TYPE_CHECKING:
    from tests.demo.fuzz_page import PageFuzz

SECONDS = 20
MAX_GROWTH = 1500  # MB: a picture at Pillow's limit is 540 MB as RGB, and is copied once
PER_PROCESS = 1000

NUMBERS = (0, 1, -1, 2, 0.5, 5, 1e-9, 1e9, 1e300, float("inf"), float("-inf"), float("nan"), 224, 2**31, 2**63, 10**30)
TEXTS = ("", " ", "1", "1,2", "1,,2", "nan", "inf", "-1", "0", "1e9", "1e400", "x", "é", "1;2", "٣", "\x00", "💣",
         "--", "1 2")  # fmt: skip
DTYPES = ("uint8", "int8", "uint16", "int64", "float16", "float32", "float64", "bool", "complex")
VIDEOS = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx", ".avi": "mpeg4", ".ts": "mpeg2video", ".flv": "flv"}
OPTIONS = ("scales", "patch-sizes", "k", "top", "device", "dtype", "runtime", "context", "weights", "stride", "model")

Source = random.Random


class Bomb:
    """Leaves a mark when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


class Fuzz:
    """One kind of input per method, which returns for a valid input and raises DensescoreError for a refused one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, folder / "executed"
        state = Toy().state_dict()
        MODELS["toy"] = ModelEntry("toy", _toy, lambda: state, "MIT", "tests", patch_size=20, scales=(1, 1.5))
        self.scorer = DenseScorer("toy", runtime="torch")
        self.page_fuzz: PageFuzz | None = None
        # Images
        pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
        picture, kinds = Image.fromarray(pixels), ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
        gray = Image.fromarray((pixels[..., 0] * np.uint32(256)).astype(np.uint16))
        self.encoded = [*(_encoded(picture.save, kind) for kind in kinds), _encoded(gray.save, "PNG")]
        self.encoded += [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\x00"]
        self.photo = folder / "photo.png"
        self.photo.write_bytes(self.encoded[0])
        # Files of tensors
        head = HeadFile(AdaptationHead(10, 2, width=4), ("x", "y"), "toy", (0.5,) * 3, (0.5,) * 3, 20)
        save_head(folder / "head.safetensors", head)
        self.scorer.score(pixels).save(folder / "scores.safetensors")
        written = [(folder / name).read_bytes() for name in ("head.safetensors", "scores.safetensors")]
        pickled = _encoded(lambda file: torch.save(Toy().state_dict(), file))
        self.seeds = [save(Toy().state_dict()), *written, pickled]
        # Data sets
        self.sets = list[tuple[Path, Path]]()
        makers: list[Callable[[Path], Path]] = [partial(turned_set, name) for name in TURNED]
        makers += [roboflow_coco, cvat_coco, labelimg, yolo, lambda root: write_voc(root, {"train": 3})]
        for make in makers:
            root = make(folder / f"set-{len(self.sets)}")
            self.sets += [(root, path) for path in sorted(root.rglob("*")) if path.is_file()]
        # Videos
        self.videos = {suffix: b"" for suffix in VIDEOS if find_spec("av") is not None}  # the extra video
        for suffix in self.videos:
            clip = write_clip(folder / f"clip{suffix}", numbered(12), rate=6, codec=VIDEOS[suffix])
            self.videos[suffix] = clip.read_bytes()

    def run(self, seed: int) -> str:
        """Outcome of one input, which follows from its seed."""
        source = random.Random(seed)
        kinds = [self.image, self.array, self.geometry, self.command, self.weights, self.data_set]
        if find_spec("fastapi") is not None:  # the extra demo
            kinds.append(self.page)
        if self.videos:
            kinds.append(self.video)
        kind = kinds[seed % len(kinds)]
        try:
            kind(source)
            return f"{kind.__name__}: valid"
        except DensescoreError as error:
            if not str(error):
                raise AssertionError("an error without a message") from error
            return f"{kind.__name__}: refused"
        finally:
            assert not self.mark.exists(), "a file was executed"

    def image(self, source: Source) -> None:
        """Encoded pictures with mutated bytes; headers that claim a huge size."""
        data = _mutated(source.choice(self.encoded), source)
        if source.random() < 0.05:  # a PNG of any size, with a few bytes of pixels
            sides = [source.choice((0, 1, 9000, 12000, 2**31 - 1)) for _ in range(2)]
            chunk = b"IHDR" + struct.pack(">II5B", *sides, 8, 2, 0, 0, 0)
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
        number = source.choice((*NUMBERS[:6], 0.25, 200, *NUMBERS[9:12]))
        with np.errstate(all="ignore"):
            values: Any = np.full(shape, number).astype(source.choice(DTYPES))
        if source.random() < 0.3 and values.dtype != np.uint16:
            values = torch.from_numpy(values)
        self._check(self.scorer.score(values))

    def geometry(self, source: Source) -> None:
        """Sizes, scales, strides and limits out of range."""
        scales = [source.choice(NUMBERS) for _ in range(source.randrange(4))]
        sides = [int(source.choice((0, 1, -5, 7, 100, 640, 10**9))) for _ in range(2)]
        options: dict[str, Any] = {source.choice(("scales", "patch_sizes")): scales}
        patch, stride = (source.choice((1, 20, 224, 0, -3, 10**9)) for _ in range(2))
        pyramid = Pyramid.of(*sides, patch=patch, stride=stride, **options)
        assert 1 <= len(pyramid) <= 100_000
        assert np.isfinite(pyramid.boxes()).all()
        keys = source.sample(["k", "scales", "patch_sizes", "stride", "patch_size", "max_cells", "mean", "std"], 2)
        arguments: dict[str, Any] = {}
        for key in keys:
            arguments[key] = source.choice(NUMBERS) if key == "k" else scales or (1,)
            if key in ("stride", "patch_size", "max_cells"):
                arguments[key] = source.choice((0, 1, 2, 3, 4, -4, 20, 21, 10**9))
        self._check(DenseScorer("toy", runtime="torch", **arguments).score(np.zeros((30, 41, 3), np.uint8)))

    def command(self, source: Source) -> None:
        """Words on the command line."""
        values = (*TEXTS, *map(str, NUMBERS), str(self.photo), str(self.folder), "toy", "cpu")
        names = source.sample(OPTIONS, source.randrange(1, 4))
        options = {"model": "toy"} | {name: source.choice(values) for name in names}
        words = ["classify", str(self.photo), "--json"]
        words += [word for name, value in options.items() for word in (f"--{name}", value)]
        result = CliRunner().invoke(cli.app, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        if result.exit_code not in (0, 1, 2):
            raise AssertionError(f"{words} ended with {result.exit_code}")
        if result.exit_code:
            raise DensescoreError(result.stderr)

    def weights(self, source: Source) -> None:
        """Weights, heads and saved scores with mutated bytes; pickles that would run something."""
        seed = source.randrange(len(self.seeds))
        path = self.folder / f"weights{'.pth' if seed == len(self.seeds) - 1 else '.safetensors'}"
        if source.random() < 0.1:
            path = path.with_suffix(source.choice((".pt", ".safetensors", ".bin")))
        data = _mutated(self.seeds[seed], source)
        if source.random() < 0.2:
            bomb, protocol = {"features.0.weight": Bomb(self.mark)}, source.choice((0, 2, 4))
            as_torch = source.random() < 0.5
            data = _encoded(lambda file: torch.save(bomb, file)) if as_torch else pickle.dumps(bomb, protocol=protocol)
        path.write_bytes(data)
        readers = (read_weights, load_head, DenseScores.load, self._load)
        right = {0: read_weights, 1: source.choice((load_head, self._load)), 2: DenseScores.load}.get(seed, self._load)
        reader = right if source.random() < 0.7 else source.choice(readers)
        reader(path)

    def page(self, source: Source) -> None:
        """Requests to the page and the HTTP API: mutated bytes, forms, queries."""
        if self.page_fuzz is None:
            from tests.demo.fuzz_page import PageFuzz

            self.page_fuzz = PageFuzz(self.scorer, self.encoded, _mutated)
        self.page_fuzz.send(source)

    def data_set(self, source: Source) -> None:
        """Data sets with one mutated file."""
        root, path = source.choice(self.sets)
        content = path.read_bytes()
        path.write_bytes(_mutated(content, source))
        labels: Labels = source.choice(("auto", "image", "box", "both"))
        share = source.choice((None, 0.5))
        try:
            loaded = load_set(root, "train", labels=labels, val_share=share)
        finally:
            path.write_bytes(content)
        check_boxes(loaded)

    def video(self, source: Source) -> None:
        """Videos with mutated bytes: frames are named, and read in and out of order."""
        path = self.folder / f"mutated{source.choice(list(self.videos))}"
        path.write_bytes(_mutated(self.videos[source.choice((path.suffix, path.suffix, *self.videos))], source))
        names = list(islice(frame_names(path, source.choice((0.5, 6, 25))), 60))
        if source.random() < 0.5:
            source.shuffle(names)
        try:
            for name in names:
                pixels = read_frame(*split_frame_name(name))
                assert pixels.dtype == np.uint8
                assert pixels.ndim == 3
        finally:
            close_videos()

    def _load(self, path: Path) -> None:
        is_head = path.suffix == ".safetensors"
        scorer = DenseScorer(path, runtime="torch") if is_head else DenseScorer("toy", weights=path, runtime="torch")
        self._check(scorer.score(np.zeros((30, 41, 3), np.uint8)))

    @staticmethod
    def _check(scores: DenseScores) -> None:
        assert torch.isfinite(scores.patch_scores).all()
        assert ((scores.patch_scores >= 0) & (scores.patch_scores <= 1)).all()
        assert len(scores.patch_scores) == len(scores.boxes) > 0


def turned_set(name: str, root: Path) -> Path:
    """A set of one picture with a turned box, as a tool writes it."""
    (root / "train").mkdir(parents=True)
    Image.new("RGB", (80, 60)).save(root / "train/a.png")
    TURNED[name](root, 30)
    return root


def _toy(state: dict[str, torch.Tensor] | None) -> Toy:
    toy = Toy()
    if state is not None:
        load_strict(toy, state, "toy")
    return toy


def _encoded(write: Callable[..., object], *arguments: Any) -> bytes:
    """Bytes that `write` puts in a file."""
    file = io.BytesIO()
    write(file, *arguments)
    return file.getvalue()


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
                words = (b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", source.randbytes(4))
                changed[at : at + 4] = source.choice(words)
            case 2:
                del changed[at:]
            case 3:
                changed[at:at] = changed[: source.randrange(200)]
            case 4:
                changed[at : at + source.randrange(50)] = source.randbytes(source.randrange(50))
    return bytes(changed)


def run_some(first: int, count: int) -> Counter[str]:
    """Outcomes of the seeds ``first …``, in this process; an AssertionError names the seed of any other exception."""

    def too_long(signum: int, frame: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.signal(signal.SIGPROF, too_long)
        for seed in range(first, first + count):
            print(seed, file=sys.stderr)  # the last line names the input of a crash
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                outcomes[fuzz.run(seed)] += 1
            except Exception as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        if fuzz.page_fuzz is not None:
            fuzz.page_fuzz.close()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000
        assert grown < MAX_GROWTH, f"seeds {first}..{first + count - 1} took {grown} MB more"
        outcomes["most MB"] = grown
    return outcomes


def main(
    count: Annotated[int, cyclopts.Parameter(help="Inputs.")] = 20_000,
    seed: Annotated[int, cyclopts.Parameter(help="Of the first input.")] = 0,
) -> None:
    """Run a fuzz campaign; exits with 1 if an input failed."""
    total: Counter[str] = Counter()
    failures = 0
    for first in range(seed, seed + count, PER_PROCESS):
        some = min(PER_PROCESS, seed + count - first)
        child = f"from tests.fuzz import run_some; print(dict(run_some({first}, {some})))"
        try:
            done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=some * SECONDS)
        except subprocess.TimeoutExpired:
            sys.exit(1)
        if done.returncode:
            failures += 1
            print(f"after seed {first}, code {done.returncode}: {done.stderr[-3000:]}", flush=True)
            continue
        counts = Counter(eval(done.stdout, {}))
        counts["most MB"] -= min(counts["most MB"], total["most MB"])
        total.update(counts)
        print(f"{first + some - seed} of {count}: {dict(sorted(total.items()))}", flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    cyclopts.run(main)
