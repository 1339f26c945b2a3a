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
from densescore.scoring.batch import groups, score_staged
from densescore.scoring.classify import shared_scorer
from densescore.scoring.fingerprint import Context
from densescore.scoring.scorer import DenseScorer
from densescore.scoring.staging import Staged, stage


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
    decoders: int | None = None,
    ahead: int = 4,
    batch: int | None = None,
    **options: Any,
) -> Iterator[Scored]:
    """Score images one by one, in order, each when it is asked for. Only a few images are held at a time.

    While one image is scored, threads decode the next ones; on a GPU they also make the next batch's levels and copy
    them there. An image that cannot be scored yields an error, and the stream goes on with the next one.

    Args:
        images: paths, or anything that `read_image` takes; may be an infinite generator.
        model: a scorer, or what `DenseScorer` takes.
        context: as for `DenseScorer.score`.
        decoders: number of threads that decode; by default 1, or with a GPU one per processor, up to 8.
        ahead: largest number of decoded images held at once, besides those of a batch (on a GPU, of two).
        batch: largest number of images scored in one pass; by default the scorer's `batch_size`.
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
    for name, value in {"decoders": decoders, "ahead": ahead, "batch": batch}.items():
        if value is not None and value < 1:
            raise DensescoreError(f"{name} must be at least 1, got {value}")
    if isinstance(model, DenseScorer):
        if options:
            raise DensescoreError(f"a scorer has its options already, got {', '.join(options)}, too")
        scorer = model
    else:
        scorer = shared_scorer(model, options)
    context = context or scorer.context
    batch = batch or (scorer.batch_size if context == "image" else 1)
    decoders = decoders or (1 if scorer.device.type == "cpu" else min(8, os.cpu_count() or 1))
    return _stream(images, scorer, context, decoders, ahead + batch - 1, batch)


@dataclass(frozen=True)
class _Batch:
    """Images that are scored together.

    Attributes:
        images: as they were given, and decoded.
        staged: their levels on the device; None where they do not go there together.
    """

    images: Sequence[tuple[ImageLike, Future[Pixels]]]
    staged: Future[list[Staged]] | None


def _stream(
    images: Iterable[ImageLike], scorer: DenseScorer, context: Context, decoders: int, ahead: int, size: int
) -> Iterator[Scored]:
    sources = iter(images)
    stages = scorer.batching == "canvases" and context == "image" and size > 1
    pool = ThreadPoolExecutor(decoders, thread_name_prefix="densescore-decoder")
    stager = ThreadPoolExecutor(1, thread_name_prefix="densescore-stager")
    waiting: deque[tuple[ImageLike, Future[Pixels]]] = deque()
    batches: deque[_Batch] = deque()
    try:
        while True:
            for source in islice(sources, ahead - len(waiting)):
                waiting.append((source, pool.submit(read_image, source)))
            if waiting:
                taken = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                batches.append(_Batch(taken, stager.submit(_stage, scorer, taken) if stages else None))
            if not batches:
                return
            if not (stages and waiting and len(batches) == 1):  # one is staged while another is scored
                yield from _score(batches.popleft(), scorer, context)
    finally:  # also where the caller stops early
        pool.shutdown(cancel_futures=True)
        stager.shutdown(cancel_futures=True)


def _stage(scorer: DenseScorer, taken: Sequence[tuple[ImageLike, Future[Pixels]]]) -> list[Staged]:
    decoded = [future.result() for _, future in taken if future.exception() is None]
    return [stage(scorer, group) for group in groups(scorer, decoded)]


def _score(batch: _Batch, scorer: DenseScorer, context: Context) -> Iterator[Scored]:
    """Score images together; where that fails, one by one, so that an image costs only itself."""
    if len(batch.images) > 1:
        try:
            found = iter(_score_together(batch, scorer, context))
        except Exception:  # the next lines find out whose it is
            found = None
        if found is not None:
            for source, decoded in batch.images:
                yield _score_one(source, decoded, lambda _: next(found))
            return
    for source, decoded in batch.images:
        yield _score_one(source, decoded, lambda pixels: scorer.score(pixels, context=context))


def _score_together(batch: _Batch, scorer: DenseScorer, context: Context) -> list[DenseScores]:
    if batch.staged is not None:
        return [scores for staged in batch.staged.result() for scores in score_staged(scorer, staged)]
    decoded = [future.result() for _, future in batch.images if future.exception() is None]
    return scorer.score_batch(decoded, context=context)


def _score_one(source: ImageLike, decoded: Future[Pixels], score: Callable[[Pixels], DenseScores]) -> Scored:
    try:
        scores = score(decoded.result())
        return Scored(source, replace(scores, source=file_of(source)), None)  # the pixels go with the stream
    except DensescoreError as error:
        return Scored(source, None, str(error))
    except Exception as error:  # one odd image among a million must not end the run; its row says what happened
        return Scored(source, None, f"{type(error).__name__}: {error}")
