"""`PatchIndex`: a folder with the codes of every patch of many images, in parts written whole or not at all."""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from densescore.errors import DensescoreError
from densescore.geometry import Pyramid
from densescore.io.files import atomic_write, claim, exclusive
from densescore.io.images import ImageLike
from densescore.io.names import as_message, as_text, from_text, to_json
from densescore.io.video import split_frame_name
from densescore.jobs.many.ray_engine import RayPool
from densescore.jobs.many.rows import Row
from densescore.results.patches import PatchFeatures
from densescore.scoring.scorer import DenseScorer
from densescore.search.codec import Codec, Vectors
from densescore.search.examples import Box, Example, mean_vector
from densescore.search.match import Match

PART_IMAGES = 64
"""Images per part: the most work that an interruption loses."""

_KIND, _CODEC, _DESCRIPTION = "index of patches", "basis.faiss", "index.json"
_HOLDS = (r"basis\.faiss", r"index\.json", r"part-\d+\.parquet")
_COLUMNS = ("image", "bytes", "modified", "height", "width", "codes")
_SAMPLE_IMAGES, _SAMPLE_ROWS = 100, 40_000  # that a codec is trained on
_HELD_PATCHES = 100_000  # whose features stay in memory until their images' turn
_EXPANSION = 5  # best images whose places are further examples
_HITS = 200  # patches per wanted image in a first search: an image may have many similar ones

Stamp: TypeAlias = tuple[int, int]
"""Bytes of a file, and its time of modification in nanoseconds."""


class Indexed(NamedTuple):
    """An image in the index: its name, its patches, and the number of patches before them."""

    name: str
    pyramid: Pyramid
    start: int


class PatchIndex:
    """Features of every patch of many images, as codes in a folder, and the search in them.

    Args:
        folder: folder of the index, which need not exist yet.
        scorer: scorer that computes the features. Default: the one that the index was made with.
        basis: folder of another index, whose codec a new index takes, so that similarities compare across both.

    Raises:
        DensescoreError: the folder holds something else, or an index of another model, other scales or basis.
        MissingPackageError: the extra ``search`` is not installed.

    Example:
        >>> index = PatchIndex("photos.index", DenseScorer("lite0-stages"))  # doctest: +SKIP
        >>> index.add(["photos/1.jpg", "photos/2.jpg"])  # doctest: +SKIP
        >>> index.search("query.jpg", box=(40, 60, 200, 220), top=1)  # doctest: +SKIP
        [Match(source='photos/2.jpg', box=(12.0, 40.0, 172.0, 200.0), scale=2.0, similarity=0.71)]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        scorer: DenseScorer | None = None,
        *,
        basis: str | os.PathLike[str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        stored = _read_description(self.folder)
        if scorer is None:
            if stored is None:
                raise DensescoreError(f"{self.folder}: no index; `densescore index` makes one")
            scorer = DenseScorer(**stored["scorer"])
        self.scorer = scorer
        self._description = _describe(scorer)
        self.codec = None if stored is None else Codec.load(self.folder / _CODEC)
        if stored is not None:
            then, now = stored["features"], self._description["features"]
            if changed := [name for name in now if then.get(name) != now[name]]:
                raise DensescoreError(f"{self.folder}: an index of another model: it has another {', '.join(changed)}")
            if self.codec is not None and stored["basis"] != self.codec.digest:
                raise DensescoreError(f"{self.folder / _CODEC}: damaged, or of another index")
        if basis is not None:
            other = Codec.load(Path(basis) / _CODEC)
            if other.digest != (self.codec or other).digest:
                raise DensescoreError(f"{self.folder}: an index of another basis than {os.fspath(basis)}")
            self.codec = other

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "PatchIndex":
        """An existing index, with the scorer that it was made with."""
        return cls(folder)

    @property
    def images(self) -> list[str]:
        """Paths of the indexed images, and names of videos' frames."""
        return [image.name for image in self._content[0]]

    def __len__(self) -> int:
        """The number of patches."""
        images, _ = self._content
        return images[-1].start + len(images[-1].pyramid) if images else 0

    # Content

    def add(
        self,
        images: Iterable[str | os.PathLike[str]],
        callback: Callable[[int, str | None], None] = lambda count, error: None,
        *,
        pool: RayPool | None = None,
    ) -> int:
        """Add images that are new or have changed; images that are gone from the disk leave the index.

        Stopped at any moment and called again, it resumes, and ends with the same index.

        Args:
            images: files, or frames of videos (``clip.mp4#t=2.5``).
            callback: called with the number of images done, and the error of one that failed.
            pool: workers of a Ray cluster that compute the features. Default: this process.

        Returns:
            The number of images that cannot be read; the next call tries them again.

        Raises:
            DensescoreError: another process is writing to the index, or no image can be read.
        """
        names = list(dict.fromkeys(os.fspath(image) for image in images))
        with exclusive(self.folder):
            claim(self.folder, _KIND, _HOLDS)
            # Compare with the disk
            stored = {name: stamp for path in self._parts() for name, stamp in self._stamps(path).items()}
            current = {name: _stamp(name) for name in {*names, *stored}}
            self._remove({name for name in stored if current[name] != stored[name]})
            new = [name for name in names if stored.get(name, ()) != current[name]]
            callback(len(names) - len(new), None)
            # Add parts
            held = self._begin(new) if new else {}
            number = max((int(path.stem.removeprefix("part-")) for path in self._parts()), default=-1) + 1
            failed = 0
            for rows, table in self._make(new, held, pool):
                for row in rows:
                    failed += row["error"] is not None
                    callback(1, row["error"])
                if table:
                    self._write(self.folder / f"part-{number:08d}.parquet", table)
                    number += 1
        self.__dict__.pop("_content", None)
        return failed

    def _make(
        self, names: Sequence[str], held: dict[str, PatchFeatures], pool: RayPool | None
    ) -> Iterator[tuple[list[Row], bytes]]:
        """The images done since the last step, with their errors; and a part, once it is whole."""
        parts = [(start, names[start : start + PART_IMAGES]) for start in range(0, len(names), PART_IMAGES)]
        make = partial(_IndexPart, self.folder)
        if pool is not None:
            for _, table, rows in pool.map(parts, make, ordered=True):
                yield rows, table
        elif parts:
            maker = make(self.scorer, held)
            for start, images in parts:
                rows = []
                for row in maker.rows(images, start):
                    rows.append(row)
                    yield [row], b""
                yield [], maker.encode(rows)

    def _begin(self, names: Sequence[str]) -> dict[str, PatchFeatures]:
        """Write codec and description; returns the features of the sample that the codec was trained on."""
        if is_index(self.folder):
            return {}
        held = dict[str, PatchFeatures]()
        if self.codec is None:
            rows, draw = list[Vectors](), np.random.default_rng(0)
            spread = names[:: -(-len(names) // _SAMPLE_IMAGES)]
            for name in spread:
                try:
                    patches = self.scorer.patches(name)
                except DensescoreError:  # reported in its turn
                    continue
                drawn = draw.permutation(len(patches))[: _SAMPLE_ROWS // len(spread)]
                rows.append(_as_rows(patches)[drawn])
                if sum(len(each) for each in held.values()) < _HELD_PATCHES:
                    held[name] = replace(patches, features=patches.features.half())
            if not rows:
                raise DensescoreError(f"{self.folder}: none of the {len(names)} images can be read")
            self.codec = Codec.train(np.concatenate(rows))
        self.codec.save(self.folder / _CODEC)
        with atomic_write(self.folder / _DESCRIPTION) as temporary:
            temporary.write_text(to_json({**self._description, "basis": self.codec.digest}, indent=1))
        return held

    # Search

    def search(
        self,
        image: ImageLike | Sequence[Example],
        box: Box | None = None,
        top: int = 50,
        *,
        unlike: Sequence[Example] = (),
    ) -> list[Match]:
        """The images with a place that looks most like an example, most similar first.

        Args:
            image: picture of the example, as for `read_image`; or a list of examples, each a picture and a box or None.
            box: ``x0 y0 x1 y1`` of the example in its picture, in pixels. Default: the whole picture.
            top: maximum number of images.
            unlike: counter-examples.

        Raises:
            DensescoreError: the index is empty or damaged; an example cannot be read; its box lies outside of the
                picture, or is much smaller than the patches of the index.
        """
        if top < 1:
            raise DensescoreError(f"top must be at least 1, got {top}")
        images, engine = self._content
        if self.codec is None or not images:
            raise DensescoreError(f"{self.folder}: the index is empty")
        examples: Any = image if isinstance(image, list | tuple) else [(image, box)]
        if not examples:
            raise DensescoreError("a search needs at least one example")
        wanted = mean_vector(self.scorer, self.codec, examples)  # [d]
        unwanted = mean_vector(self.scorer, self.codec, unlike) if unlike else np.zeros_like(wanted)
        length = max(float(np.linalg.norm(wanted - unwanted)), 1e-6)

        # Search again with the best images' places as further examples, each with its similarity's square as weight
        hits = self._best((wanted - unwanted) / length, _EXPANSION)
        weights = np.array([max(similarity, 0) ** 2 for _, _, similarity in hits], np.float32)
        places = np.stack([engine.reconstruct(row) for _, row, _ in hits])  # [hits, d]
        wanted = (wanted + weights @ places) / (1 + weights.sum())
        return [_match(*hit) for hit in self._best((wanted - unwanted) / length, top)]

    def _best(self, query: Vectors, top: int) -> list[tuple[Indexed, int, float]]:
        """The best patch of each of the best images: the image, the patch's number and its similarity."""
        images, engine = self._content
        # Ever more patches, until enough images are among them
        starts, hits = np.array([each.start for each in images]), _HITS * top
        while True:
            hits = min(hits, engine.ntotal)
            similarities, rows = (values[0] for values in engine.search(query[None], hits))
            owners = np.searchsorted(starts, rows, side="right") - 1
            firsts = np.sort(np.unique(owners, return_index=True)[1])[:top]  # the best patch of each image
            if len(firsts) == top or hits == engine.ntotal:
                break
            hits *= 4
        return [(images[owners[hit]], int(rows[hit]), float(similarities[hit])) for hit in firsts]

    @cached_property
    def _content(self) -> tuple[list[Indexed], Any]:
        """The images, and faiss's index of all their patches."""
        images, start = list[Indexed](), 0
        engine = None if self.codec is None else self.codec.searchable()
        for path in self._parts():
            for row in self._read(path, _COLUMNS):
                pyramid = self.scorer.pyramid(row["height"], row["width"])
                if engine is None or len(row["codes"]) != len(pyramid) * engine.code_size:
                    raise _damaged(path)
                engine.add_sa_codes(np.frombuffer(row["codes"], np.uint8).reshape(len(pyramid), -1))
                images.append(Indexed(from_text(row["image"]), pyramid, start))
                start += len(pyramid)
        return images, engine

    # Parts on disk

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def _read(self, path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows: list[dict[str, Any]] = pq.ParquetFile(path, page_checksum_verification=True).read(columns).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path) from error
        return rows

    def _write(self, path: Path, table: bytes) -> None:
        with atomic_write(path, overwrite=True) as temporary:
            temporary.write_bytes(table)

    def _stamps(self, path: Path) -> dict[str, Stamp]:
        rows = self._read(path, _COLUMNS[:3])
        return {from_text(row["image"]): (row["bytes"], row["modified"]) for row in rows}

    def _remove(self, names: set[str]) -> None:
        """Rewrite the parts that hold these images, without them."""
        for path in self._parts() if names else ():
            rows = self._read(path, _COLUMNS)
            rest = [row for row in rows if from_text(row["image"]) not in names]
            if not rest:
                path.unlink()
            elif len(rest) < len(rows):
                self._write(path, _encode(rest))


class _IndexPart:
    """Makes parts of an index, in this process or in a worker of a `RayPool`."""

    def __init__(self, folder: Path, scorer: DenseScorer, held: dict[str, PatchFeatures] | None = None) -> None:
        self.index, self.held = PatchIndex(folder, scorer), held or {}  # refuses another model than the index's

    def rows(self, images: Sequence[str], start: int) -> Iterator[Row]:
        for name in images:
            size, modified = _stamp(name) or (0, 0)  # before the pixels: a file that changes meanwhile differs from it
            try:
                patches = self.held.pop(name, None) or self.index.scorer.patches(name)
            except DensescoreError as error:
                yield self.failed(name, 0, as_message(str(error)))
                continue
            assert self.index.codec is not None
            codes = self.index.codec.encode(_as_rows(patches)).tobytes()
            values = (as_text(name), size, modified, patches.pyramid.height, patches.pyramid.width, codes)
            yield {**dict(zip(_COLUMNS, values, strict=True)), "error": None}

    def failed(self, image: str, index: int, error: str) -> Row:
        return {"image": as_text(image), "error": error}

    def encode(self, rows: Sequence[Row]) -> bytes:
        return _encode([row for row in rows if row["error"] is None])


def _encode(rows: Sequence[Row]) -> bytes:
    """Rows as a parquet file; nothing if there are none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = io.BytesIO()
    if rows:
        table = pa.Table.from_pylist([{name: row[name] for name in _COLUMNS} for row in rows])
        pq.write_table(table, data, compression="none", use_dictionary=False, write_page_checksum=True)
    return data.getvalue()


def is_index(folder: Path) -> bool:
    """Whether a folder holds an index."""
    return (folder / _DESCRIPTION).exists()


def _match(image: Indexed, row: int, similarity: float) -> Match:
    """A patch of an image, by its number in the index; its box is clipped to the image."""
    pyramid, index = image.pyramid, row - image.start
    x0, y0, x1, y1 = pyramid.boxes()[index].tolist()
    box = max(x0, 0.0), max(y0, 0.0), min(x1, float(pyramid.width)), min(y1, float(pyramid.height))
    return Match(image.name, box, pyramid.locate(index)[0].scale, similarity)


def _describe(scorer: DenseScorer) -> dict[str, Any]:
    """How to make the scorer again, and what its features and patches follow from."""
    arguments = scorer.arguments()
    features = scorer.fingerprint("features")
    geometry = {"scales": scorer.scales, "patch_sizes": scorer.patch_sizes}
    return dict(json.loads(to_json({"scorer": arguments, "features": {**features, **geometry}})))


def _read_description(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / _DESCRIPTION).read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DensescoreError(f"{folder / _DESCRIPTION}: cannot be read: {error}") from error


def _stamp(name: str) -> Stamp | None:
    try:
        status = os.stat(split_frame_name(name)[0])
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _as_rows(patches: PatchFeatures) -> Vectors:
    """Features, float32 ``[M, D]`` of float16's precision: equal whether they were held or not."""
    rows: Vectors = patches.features.half().float().cpu().numpy()
    return rows


def _damaged(path: Path) -> DensescoreError:
    return DensescoreError(f"{path}: damaged: delete it, and `densescore index` makes it again")
