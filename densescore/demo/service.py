"""Scores clients' images: inputs are capped, one image is scored at a time, few wait, none longer than its time."""

import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np

from densescore.demo.decoder import Decoder
from densescore.demo.limits import BusyError, Limits, ModelError, TooLargeError, TooSlowError
from densescore.errors import DensescoreError
from densescore.io.images import Pixels
from densescore.results.draw import Style, data_url, paint
from densescore.results.patches import BestPatch
from densescore.results.regions import thumbnail_size
from densescore.results.scores import DenseScores, best_patches
from densescore.scoring.scorer import DenseScorer
from densescore.search.index import PatchIndex

T = TypeVar("T")

_log = logging.getLogger(__name__)
_SHARE = 8  # seconds in which a client pays for one of the server
_TOP, _PATCHES = 8, 6  # classes on the page, and best patches of each
_PLACES = 18  # shown places of the index
_PHOTO_SIDE, _PATCH_SIDE = 1000, 240  # longest sides of the page's pictures, in pixels


class Answer(NamedTuple):
    """An image and its scores."""

    pixels: Pixels
    scores: DenseScores

    def select(self, classes: str) -> "Answer":
        """The answer for comma-separated classes or groups; for all classes if there is no name."""
        names = [name.strip() for name in classes.split(",") if name.strip()]
        return self._replace(scores=self.scores.select(names)) if names else self

    def page(self) -> dict[str, Any]:
        """Everything that the page shows, as JSON values; classes best first."""
        pixels, scores = self
        size = thumbnail_size(pixels.shape[1], pixels.shape[0], _PHOTO_SIDE)
        classes = []
        for best in scores.top(_TOP):
            view = scores.class_map(best.label, _PHOTO_SIDE)
            picture = data_url(paint(pixels, view, Style(), size), _PHOTO_SIDE) if view.is_present else ""
            patches = [self._patch(patch) for patch in best_patches(scores, best.label, _PATCHES) if view.is_present]
            classes.append({**best._asdict(), "title": view.title, "picture": picture, "patches": patches})
        return {"photo": data_url(pixels, _PHOTO_SIDE), "classes": classes}

    def maps_file(self, max_values: int) -> bytes:
        """Heatmaps of the page's classes that fit in `max_values`, as .npz: ``heatmaps [n, H, W]``, ``labels [n]``."""
        height, width = self.pixels.shape[:2]
        count = min(_TOP, max_values // (height * width))
        if count < 1:
            raise TooLargeError(
                f"a map of {width}×{height} values is too large; at most {max_values:,} values are sent"
            )
        labels = [best.label for best in self.scores.top(count)]
        file = io.BytesIO()
        np.savez_compressed(file, heatmaps=self.scores.heatmap(labels).cpu().numpy(), labels=np.array(labels))
        return file.getvalue()

    def _patch(self, patch: BestPatch) -> str:
        """A patch's picture."""
        height, width = self.pixels.shape[:2]
        x0, y0, x1, y1 = np.clip(np.rint(patch.box).astype(int), 0, [width, height, width, height])
        return data_url(self.pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)], _PATCH_SIDE)


class _Job(NamedTuple):
    client: str
    future: Future[Any]
    work: Callable[[], Any]


class Service:
    """A queue in front of models (name → maker of a scorer); the client that used the least time is next.

    A `decoder` that is passed in is shared, and not ended by `close`. With an `index`, places in it are found.
    """

    def __init__(
        self,
        models: Mapping[str, Callable[[], DenseScorer]],
        limits: Limits | None = None,
        decoder: Decoder | None = None,
        index: PatchIndex | None = None,
    ) -> None:
        self.models, self.limits, self.index = dict(models), limits or Limits(), index
        self._shares_decoder = decoder is not None
        self._decoder = decoder or Decoder()
        self._scorers: dict[str, DenseScorer] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="densescore-service")
        self._places = BoundedSemaphore(1 + self.limits.waiting)
        self._futures: set[Future[Any]] = set()
        self._lock = Lock()
        self._waiting: list[_Job] = []
        self._paid: dict[str, float] = {}  # client → time at which its images are paid for

    @property
    def queued(self) -> int:
        """Number of images in work or waiting."""
        return len(self._futures)

    def is_ready(self, model: str) -> bool:
        """Whether a model is loaded; the first image that asks for another one waits for it."""
        return model in self._scorers

    def load(self, model: str) -> DenseScorer:
        """A model's scorer, made at the first call."""
        if model not in self._scorers:
            self._scorers[model] = self.models[model]()
        return self._scorers[model]

    def submit(self, data: bytes, model: str, describe: Callable[[Answer], T], client: str = "") -> "Future[T]":
        """Queue an encoded image (bytes, never a path); `describe` runs in the worker's thread and gives the result.

        Raises `DensescoreError`, `TooLargeError` or `BusyError` at once; the future raises errors of the image.
        """
        if model not in self.models:
            raise DensescoreError(f"no model {model!r}: there are {', '.join(self.models)}")
        return self._submit(data, lambda deadline: describe(self._score(data, model, deadline)), client)

    def find(self, data: bytes, box: Sequence[float], client: str = "") -> "Future[list[dict[str, Any]]]":
        """As `submit`: places in the index like the image's `box`, in shares of its width and height."""
        return self._submit(data, lambda deadline: self._find(data, box, deadline), client)

    def _submit(self, data: bytes, work: Callable[[float], T], client: str) -> "Future[T]":
        if len(data) > self.limits.upload:
            raise TooLargeError(f"the image has {len(data):,} bytes; at most {self.limits.upload:,} are taken")
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{self.limits.waiting} images are waiting already; try again in a moment")
        deadline = time.monotonic() + self.limits.seconds

        def release(future: "Future[T]") -> None:
            self._futures.discard(future)
            self._places.release()

        future: Future[T] = Future()
        self._futures.add(future)
        future.add_done_callback(release)
        with self._lock:
            self._waiting.append(_Job(client, future, lambda: work(deadline)))
        try:
            self._pool.submit(self._work)
        except RuntimeError:  # the service is closed
            future.cancel()
        return future

    def too_slow(self) -> TooSlowError:
        """The error of a request whose time is over."""
        return TooSlowError(f"the image was not scored within {self.limits.seconds:g} seconds; try a smaller one")

    def close(self) -> bool:
        """Cancel waiting images and end the decoder; False if an image is still being scored."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for job in self._waiting:
                job.future.cancel()
        if not self._shares_decoder:
            self._decoder.close()
        return not self._futures

    def _work(self) -> None:
        """Score the next image, in the pool's thread."""
        begin = time.monotonic()
        with self._lock:
            self._paid = {client: until for client, until in self._paid.items() if until > begin}
            self._waiting = [job for job in self._waiting if not job.future.cancelled()]
            if not self._waiting:
                return
            job = min(self._waiting, key=lambda job: self._paid.get(job.client, begin))
            self._waiting.remove(job)
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            result = job.work()
        except BaseException as error:
            outcome = partial(job.future.set_exception, error)
        else:
            outcome = partial(job.future.set_result, result)
        with self._lock:
            now = time.monotonic()
            self._paid[job.client] = self._paid.get(job.client, now) + _SHARE * (now - begin)
        outcome()

    def _decode(self, data: bytes, deadline: float) -> Pixels:
        """Decode an image in bounded time."""
        seconds = min(self.limits.decode_seconds, deadline - time.monotonic())
        if seconds <= 0:
            raise self.too_slow()
        return self._decoder.decode(data, self.limits.pixels, seconds)

    def _find(self, data: bytes, box: Sequence[float], deadline: float) -> list[dict[str, Any]]:
        """Places in the index, as JSON values; images that are gone are left out."""
        if self.index is None:
            raise DensescoreError("there is no index to search in")
        pixels = self._decode(data, deadline)
        sides = (share * side for share, side in zip(box, (pixels.shape[1], pixels.shape[0]) * 2, strict=True))
        matches = self.index.search(pixels, tuple(sides), _PLACES)
        places = [(match, data_url(match.crop(), _PATCH_SIDE)) for match in matches if match.exists]
        return [{"name": Path(m.source).name, "similarity": m.similarity, "picture": url} for m, url in places]

    def _score(self, data: bytes, model: str, deadline: float) -> Answer:
        """Score an image; the network is bounded by the number of patches."""
        limits = self.limits
        pixels = self._decode(data, deadline)
        try:
            scorer = self.load(model)
        except DensescoreError as error:  # it names a file of the server's
            _log.error("model %s: %s", model, error)
            raise ModelError(f"model {model!r} cannot be loaded; see the server's log") from error
        try:
            scorer.pyramid(pixels.shape[0], pixels.shape[1], max_cells=limits.cells)
        except DensescoreError as error:
            most = f"more than {limits.cells:,} patches: crop it to one that is less long"
            raise TooLargeError(f"an image of {pixels.shape[1]}×{pixels.shape[0]} pixels has {most}") from error
        if time.monotonic() > deadline:
            raise self.too_slow()
        return Answer(pixels, scorer.score(pixels))
