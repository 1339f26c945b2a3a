"""Scoring for strangers: inputs capped, one image at a time, few waiting, none for ever."""

import io
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import NamedTuple

from PIL import Image

from densescore.errors import DensescoreError
from densescore.io.images import Pixels, read_image
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer


class TooLargeError(DensescoreError):
    """An upload of more bytes or pixels than are taken."""


class BusyError(DensescoreError):
    """As many images as are allowed to wait are waiting."""


class TooSlowError(DensescoreError):
    """An image was not scored in time."""


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
        upload: bytes of an encoded image.
        pixels: of the decoded image.
        seconds: that a request may wait and be scored. What has begun then still ends, before the next one begins.
        waiting: requests that may wait while one is scored; more are turned away.
    """

    upload: int = 20_000_000
    pixels: int = 50_000_000
    seconds: float = 60
    waiting: int = 8


class Answer(NamedTuple):
    """An image and its scores."""

    pixels: Pixels
    scores: DenseScores


class Service:
    """Scores uploaded images with one of a few models, one image at a time.

    Args:
        models: name → what makes its scorer, when it is first asked for.
        limits: of each request.
    """

    def __init__(self, models: Mapping[str, Callable[[], DenseScorer]], limits: Limits | None = None) -> None:
        self.models, self.limits = dict(models), limits or Limits()
        self._scorers: dict[str, DenseScorer] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="densescore-service")
        self._places = BoundedSemaphore(1 + self.limits.waiting)

    def submit(self, data: bytes, model: str) -> "Future[Answer]":
        """Put an encoded image in the queue.

        Raises:
            DensescoreError: no such model. The future raises it for what is not an image.
            TooLargeError: more bytes than are taken. The future raises it for too many pixels.
            BusyError: the queue is full.
        """
        if model not in self.models:
            raise DensescoreError(f"no model {model!r}: there are {', '.join(self.models)}")
        if len(data) > self.limits.upload:
            raise TooLargeError(f"the image has {len(data):,} bytes; at most {self.limits.upload:,} are taken")
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{self.limits.waiting} images are waiting already; try again in a moment")
        try:
            future = self._pool.submit(self._score, data, model)
        except BaseException:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        return future

    def score(self, data: bytes, model: str) -> Answer:
        """Score an encoded image now, or say why not.

        Raises:
            DensescoreError: see `submit`; or not an image.
            TooSlowError: not done in time.
        """
        future = self.submit(data, model)
        try:
            return future.result(self.limits.seconds)
        except FutureTimeoutError as error:
            future.cancel()
            raise self.too_slow() from error

    def too_slow(self) -> TooSlowError:
        """What to say when the time is over."""
        return TooSlowError(f"the image was not scored within {self.limits.seconds:g} seconds; try a smaller one")

    def close(self) -> None:
        """Turn away what waits, and end."""
        self._pool.shutdown(cancel_futures=True)

    def _score(self, data: bytes, model: str) -> Answer:
        self._check_size(data)
        pixels = read_image(data)  # never a path: a stranger must not name this machine's files
        if model not in self._scorers:
            self._scorers[model] = self.models[model]()
        return Answer(pixels, self._scorers[model].score(pixels))

    def _check_size(self, data: bytes) -> None:
        """Refuse by the file's header, before anything is decoded; what has no header `read_image` refuses."""
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
        except Exception:  # any broken file
            return
        if width * height > self.limits.pixels:
            raise TooLargeError(
                f"the image has {width}×{height} = {width * height:,} pixels; at most {self.limits.pixels:,} are taken"
            )
