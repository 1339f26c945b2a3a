"""Score a stream of images; the next ones are decoded meanwhile."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from densescore.errors import DensescoreError
from densescore.io.images import ImageLike, Pixels, file_of, read_image
from densescore.results.scores import DenseScores
from densescore.scoring.classify import shared_scorer
from densescore.scoring.fingerprint import Context
from densescore.scoring.scorer import DenseScorer

BATCH = 8
"""Images in one pass of a scorer that gains by it."""


@dataclass(frozen=True, eq=False)
class Scored:
    """One image of a stream: its scores, or an error.

    Attributes:
        source: the image as it was given.
        scores: None where there is an error.
        error: None where there are scores.
    """

    source: ImageLike
    scores: DenseScores | None
    error: str | None


def score_many(
    images: Iterable[ImageLike],
    model: str | os.PathLike[str] | DenseScorer = "lite0",
    *,
    context: Context | None = None,
    decoders: int = 1,
    ahead: int = 4,
    batch: int | None = None,
    **options: Any,
) -> Iterator[Scored]:
    """Score images one by one, in order, each when it is asked for. Only a few images are held at a time.

    While one image is scored, threads decode the next ones. An image that cannot be scored yields an error, and the
    stream goes on with the next one.

    Args:
        images: paths, or anything that `read_image` takes; may be an infinite generator.
        model: a scorer, or what `DenseScorer` takes.
        context: as for `DenseScorer.score`.
        decoders: number of threads that decode.
        ahead: largest number of decoded images held at once, besides those of a batch.
        batch: largest number of images scored in one pass; by default `BATCH` where the scorer gains by it, else 1.
        **options: of `DenseScorer`, where `model` is not one already.

    Raises:
        DensescoreError: the model or an argument does not fit; never because of an image.

    Example:
        >>> import skimage
        >>> for item in score_many([skimage.data.chelsea(), "gone.jpg"], scales=(1, 1.3)):
        ...     print(item.scores.top(1)[0].label if item.scores else item.error)
        Egyptian cat
        gone.jpg: cannot be read as an image: [Errno 2] No such file or directory: 'gone.jpg'
    """
    for name, value in {"decoders": decoders, "ahead": ahead, "batch": 1 if batch is None else batch}.items():
        if value < 1:
            raise DensescoreError(f"{name} must be at least 1, got {value}")
    if isinstance(model, DenseScorer):
        if options:
            raise DensescoreError(f"a scorer has its options already, got {', '.join(options)}, too")
        scorer = model
    else:
        scorer = shared_scorer(model, options)
    if batch is None:
        batch = BATCH if (context or scorer.context) == "image" and scorer.takes_batches else 1
    return _stream(images, scorer, context, decoders, ahead + batch - 1, batch)


def _stream(
    images: Iterable[ImageLike], scorer: DenseScorer, context: Context | None, decoders: int, ahead: int, batch: int
) -> Iterator[Scored]:
    sources = iter(images)
    pool = ThreadPoolExecutor(decoders, thread_name_prefix="densescore-decoder")
    waiting: deque[tuple[ImageLike, Future[Pixels]]] = deque()
    try:
        while True:
            for source in islice(sources, ahead - len(waiting)):
                waiting.append((source, pool.submit(read_image, source)))
            if not waiting:
                return
            yield from _score([waiting.popleft() for _ in range(min(batch, len(waiting)))], scorer, context)
    finally:  # also where the caller stops early
        pool.shutdown(cancel_futures=True)


def _score(
    taken: Sequence[tuple[ImageLike, Future[Pixels]]], scorer: DenseScorer, context: Context | None
) -> Iterator[Scored]:
    """Score images together; where that fails, one by one, so that an image costs only itself."""
    if len(taken) > 1:
        try:
            found = iter(scorer.score_batch([d.result() for _, d in taken if d.exception() is None], context=context))
        except Exception:  # the next lines find out whose it is
            found = None
        if found is not None:
            for source, decoded in taken:
                yield _score_one(source, decoded, lambda _: next(found))
            return
    for source, decoded in taken:
        yield _score_one(source, decoded, lambda pixels: scorer.score(pixels, context=context))


def _score_one(source: ImageLike, decoded: Future[Pixels], score: Callable[[Pixels], DenseScores]) -> Scored:
    try:
        scores = score(decoded.result())
        return Scored(source, replace(scores, source=file_of(source)), None)  # the pixels go with the stream
    except DensescoreError as error:
        return Scored(source, None, str(error))
    except Exception as error:  # one odd image among a million must not end the run; its row says what happened
        return Scored(source, None, f"{type(error).__name__}: {error}")
