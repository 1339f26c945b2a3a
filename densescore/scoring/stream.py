"""Score a stream of images or a video; the next images are decoded meanwhile."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import torch
from typing_extensions import Unpack

from densescore.errors import DensescoreError
from densescore.io.images import ImageLike, Pixels, file_of, read_image
from densescore.io.video import close_videos, frame_names, split_frame_name
from densescore.results.scores import DenseScores
from densescore.scoring.batching import Prefetched
from densescore.scoring.classify import shared_scorer
from densescore.scoring.options import NetworkOptions, StreamOptions
from densescore.scoring.scorer import Context, DenseScorer, Launched


@dataclass(frozen=True, eq=False)
class Scored:
    """One image of a stream: its scores, or an error.

    Attributes:
        source: the image as passed in.
        scores: the scores, or None after an error.
        error: the message of the error, or None.
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
    **options: Unpack[NetworkOptions],
) -> Iterator[Scored]:
    """Score images lazily and in order, with only a few images in memory.

    While an image is scored, threads decode the next ones. On a GPU, two batches are queued and the next one is copied
    there while the scores of the first are read, which are tensors on the GPU: `DenseScores.cpu` copies them.
    An image that cannot be scored yields an error, and the stream continues with the next one.

    Args:
        images: paths, or anything that `read_image` takes; may be an infinite generator.
        model: a scorer, or a model as for `DenseScorer`.
        context: as for `DenseScorer.score`.
        decoders: number of decoding threads. Default: 1, or with a GPU one per processor, up to 8.
        ahead: maximum number of decoded images in memory, not counting the batch (on a GPU, three batches).
        batch: maximum number of images scored in one pass. Default: the scorer's `batch_size`.
        **options: options of `DenseScorer`, unless `model` is a scorer.

    Raises:
        DensescoreError: the model or an argument is invalid; never because of an image.

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
            raise DensescoreError(f"a scorer has its options already, got also {', '.join(options)}")
        scorer = model
    else:
        scorer = shared_scorer(model, options)
    context = context or scorer.context
    batch = batch or (scorer.batch_size if context == "image" else 1)
    decoders = decoders or (1 if scorer.device.type == "cpu" else min(8, os.cpu_count() or 1))
    return _stream(images, scorer, context, decoders, ahead + batch - 1, batch)


@dataclass
class _Batch:
    """Images that are scored together; on a GPU they are copied there together, and their scoring is launched."""

    images: Sequence[tuple[ImageLike, Future[Pixels]]]
    prefetched: Future[list[Prefetched]] | None
    launched: list[Launched] | None = None


def _stream(
    images: Iterable[ImageLike], scorer: DenseScorer, context: Context, decoders: int, ahead: int, size: int
) -> Iterator[Scored]:
    """Scores of images in batches of `size`, while `ahead` more are decoded."""
    sources = iter(images)
    prefetches = scorer.batching == "canvases" and context == "image" and size > 1
    decoder = ThreadPoolExecutor(decoders, thread_name_prefix="densescore-decoder")
    prefetcher = ThreadPoolExecutor(1, thread_name_prefix="densescore-prefetcher")
    stream = torch.cuda.Stream(scorer.device) if scorer.device.type == "cuda" else None
    decoding: deque[tuple[ImageLike, Future[Pixels]]] = deque()
    batches: deque[_Batch] = deque()
    try:
        while True:
            # Decode ahead; on a GPU two batches are on their way before the first is read, and the third is copied
            while len(batches) < (3 if prefetches else 1):
                for source in islice(sources, ahead - len(decoding)):
                    decoding.append((source, decoder.submit(read_image, source)))
                if not decoding:
                    break
                batch = [decoding.popleft() for _ in range(min(size, len(decoding)))]
                batches.append(_Batch(batch, prefetcher.submit(_prefetch, scorer, batch) if prefetches else None))
            if not batches:
                return
            # Launch, and score the oldest batch
            for waiting in islice(batches, 2):
                _launch(waiting, scorer, stream)
            yield from _score(batches.popleft(), scorer, context)
    finally:  # also when the caller stops early
        decoder.shutdown(cancel_futures=True)
        prefetcher.shutdown(cancel_futures=True)


def _prefetch(scorer: DenseScorer, images: Sequence[tuple[ImageLike, Future[Pixels]]]) -> list[Prefetched]:
    return list(scorer.prefetch([future.result() for _, future in images if future.exception() is None]))


def _launch(batch: _Batch, scorer: DenseScorer, stream: torch.cuda.Stream | None) -> None:
    """Launch a batch on a stream of its own, so that whoever reads an earlier one does not wait for it."""
    if batch.prefetched is None or batch.launched is not None:
        return
    try:
        prefetched = batch.prefetched.result()
        if stream is not None:  # memory of results that the caller has dropped is used again after the caller's work
            stream.wait_stream(torch.cuda.current_stream(scorer.device))
        with torch.cuda.stream(stream):  # None: no stream
            batch.launched = [scorer.launch(part) for part in prefetched]
    except Exception:  # found again by `_score`, for the image at fault
        batch.prefetched = None


def _score(batch: _Batch, scorer: DenseScorer, context: Context) -> Iterator[Scored]:
    """Score images together; if that fails, one by one, so that only the image at fault yields an error."""
    if batch.launched or len(batch.images) > 1:
        try:
            results = iter(_score_together(batch, scorer, context))
        except Exception:  # found again below, for the image at fault
            results = None
        if results is not None:
            for source, decoded in batch.images:
                yield _score_one(source, decoded, lambda _: next(results))
            return
    for source, decoded in batch.images:
        yield _score_one(source, decoded, lambda pixels: scorer.score(pixels, context=context))


def _score_together(batch: _Batch, scorer: DenseScorer, context: Context) -> list[DenseScores]:
    """The scores of all images that could be decoded."""
    if batch.launched is not None:
        return [scores for part in batch.launched for scores in part.read()]
    decoded = [future.result() for _, future in batch.images if future.exception() is None]
    return scorer.score_batch(decoded, context=context)


def _score_one(source: ImageLike, decoded: Future[Pixels], score: Callable[[Pixels], DenseScores]) -> Scored:
    try:
        scores = score(decoded.result())
        return Scored(source, replace(scores, source=file_of(source)), None)  # without the pixels
    except DensescoreError as error:
        return Scored(source, None, str(error))
    except Exception as error:  # one odd image among a million must not end the run; its row has the error
        return Scored(source, None, f"{type(error).__name__}: {error}")


class ScoredFrame(NamedTuple):
    """A frame of a video: its time in seconds since the first, and its scores."""

    time: float
    scores: DenseScores


def score_video(
    path: str | os.PathLike[str],
    model: str | os.PathLike[str] | DenseScorer = "lite0",
    *,
    fps: float = 1.0,
    **options: Unpack[StreamOptions],
) -> Iterator[ScoredFrame]:
    """Score the frame that a viewer sees of a video every ``1/fps`` seconds, lazily and in constant memory.

    The next frames are decoded while one is scored. docs/gallery.md explains times, rotation and colors.

    Args:
        path: video file.
        model: a scorer, or a model as for `DenseScorer`.
        fps: scored frames per second of the video.
        **options: options of `score_many`, and of `DenseScorer` unless `model` is a scorer.

    Raises:
        DensescoreError: the file is no video, or an argument is invalid; if the video is cut off or damaged, after the
            frames before the damage. The message names the file.

    Example:
        >>> import tempfile, skimage
        >>> from densescore.io.video import write_video
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with write_video(f"{folder}/cat.mp4", fps=10) as add:
        ...         for _ in range(15):
        ...             add(skimage.data.chelsea())
        ...     for time, scores in score_video(f"{folder}/cat.mp4", scales=(1, 1.3)):
        ...         print(time, scores.top(1)[0].label)
        0.0 Egyptian cat
        1.0 Egyptian cat
    """
    stream = score_many(frame_names(path, fps), model, **options)
    try:
        for item in stream:
            if item.scores is None:
                raise DensescoreError(item.error or "")
            yield ScoredFrame(split_frame_name(str(item.source))[1] or 0.0, item.scores)
    finally:
        stream.close()  # type: ignore[attr-defined]
        close_videos()
