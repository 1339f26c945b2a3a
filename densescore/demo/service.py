"""Scores images for strangers: inputs are capped, one image is scored at a time, few wait, none forever."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from threading import BoundedSemaphore
from typing import Any, NamedTuple, TypeVar

from densescore.demo.decoder import Decoder
from densescore.demo.limits import BusyError, Limits, TooLargeError, TooSlowError
from densescore.errors import DensescoreError
from densescore.io.images import Pixels
from densescore.results.scores import DenseScores
from densescore.scoring.scorer import DenseScorer

T = TypeVar("T")


class Answer(NamedTuple):
    """An image and its scores."""

    pixels: Pixels
    scores: DenseScores

    def of(self, classes: str) -> "Answer":
        """The scores of some classes or groups alone: names with commas between; all classes where there is no name.

        Raises:
            DensescoreError: no such class or group.
        """
        names = [name.strip() for name in classes.split(",") if name.strip()]
        return self._replace(scores=self.scores.select(names)) if names else self


class Service:
    """Scores uploaded images with one of a few models, one image at a time.

    Args:
        models: name → what makes its scorer, when it is first asked for.
        limits: of each request.
        decoder: decodes the images; by default one of its own, which `close` ends.
    """

    def __init__(
        self,
        models: Mapping[str, Callable[[], DenseScorer]],
        limits: Limits | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        self.models, self.limits = dict(models), limits or Limits()
        self._own_decoder = decoder is None
        self._decoder = decoder or Decoder()
        self._scorers: dict[str, DenseScorer] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="densescore-service")
        self._places = BoundedSemaphore(1 + self.limits.waiting)
        self._futures: set[Future[Any]] = set()

    @property
    def queued(self) -> int:
        """Images that are scored or wait now."""
        return len(self._futures)

    def is_ready(self, model: str) -> bool:
        """Whether a model is loaded; the first image that asks for another one waits for it."""
        return model in self._scorers

    def load(self, model: str) -> DenseScorer:
        """A model's scorer, made when it is first asked for."""
        if model not in self._scorers:
            self._scorers[model] = self.models[model]()
        return self._scorers[model]

    def submit(self, data: bytes, model: str, describe: Callable[[Answer], T]) -> "Future[T]":
        """Put an encoded image in the queue.

        Args:
            data: the file's bytes; never a path.
            model: name of one of the models.
            describe: turns the answer into what is wanted of it, in the same thread. The answer is then dropped.

        Raises:
            DensescoreError: no such model. The future raises it for what is not an image.
            TooLargeError: too many bytes. The future raises it for too many pixels or patches.
            BusyError: the queue is full.
        """
        if model not in self.models:
            raise DensescoreError(f"no model {model!r}: there are {', '.join(self.models)}")
        if len(data) > self.limits.upload:
            raise TooLargeError(f"the image has {len(data):,} bytes; at most {self.limits.upload:,} are taken")
        if not self._places.acquire(blocking=False):
            raise BusyError(f"{self.limits.waiting} images are waiting already; try again in a moment")
        deadline = time.monotonic() + self.limits.seconds

        def release(future: "Future[T]") -> None:
            self._futures.discard(future)
            self._places.release()

        try:
            future = self._pool.submit(lambda: describe(self._score(data, model, deadline)))
        except BaseException:
            self._places.release()
            raise
        self._futures.add(future)
        future.add_done_callback(release)
        return future

    def score(self, data: bytes, model: str) -> Answer:
        """Score an encoded image now, or say why not.

        Raises:
            DensescoreError: see `submit`; or not an image.
            TooSlowError: not done in time.
        """
        future = self.submit(data, model, lambda answer: answer)
        try:
            return future.result(self.limits.seconds)
        except FutureTimeoutError as error:
            future.cancel()
            raise self.too_slow() from error

    def too_slow(self) -> TooSlowError:
        """What to say when the time is over."""
        return TooSlowError(f"the image was not scored within {self.limits.seconds:g} seconds; try a smaller one")

    def close(self) -> bool:
        """Turn away what waits, and end the decoder.

        Returns:
            Whether no image is being scored any more. Python waits for one at its end.
        """
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._own_decoder:
            self._decoder.close()
        return not self._futures

    def _score(self, data: bytes, model: str, deadline: float) -> Answer:
        """Every step is bounded: the decoder by its time, the network by the number of patches."""
        limits = self.limits
        seconds = min(limits.decode_seconds, deadline - time.monotonic())
        if seconds <= 0:
            raise self.too_slow()
        pixels = self._decoder.decode(data, limits.pixels, seconds)
        scorer = self.load(model)
        try:
            scorer.pyramid(pixels.shape[0], pixels.shape[1], max_cells=limits.cells)
        except DensescoreError as error:
            size = f"{pixels.shape[1]}×{pixels.shape[0]}"
            raise TooLargeError(
                f"an image of {size} pixels has more than {limits.cells:,} patches: crop it to one that is less long"
            ) from error
        if time.monotonic() > deadline:
            raise self.too_slow()
        return Answer(pixels, scorer.score(pixels))
