"""Launches of the power mean kernels: tiles, chunks of rows, and the list of forms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch

from densescore_kernels.backends import TRITON_DTYPES
from densescore_kernels.power_mean.exponents import HEADROOM, is_whole, lift
from densescore_kernels.power_mean.triton_kernels import (
    add_chunks,
    power_grads,
    power_sums,
    softmax_grads,
    softmax_sums,
)
from densescore_kernels.power_mean.triton_long_rows import long_softmax_grads, long_softmax_sums
from densescore_kernels.triton_forms import NAMES, Form, Forms, aligned, vector, vectors

PROGRAMS = 512  # programs of stage one that a large call aims at: about four on each multiprocessor of an H100
LONG_PROGRAMS = 264  # for looped rows: two on each, so that the rows in hand stay in cache between the loops


class Tile(NamedTuple):
    """Rows and classes that a program holds at a time, and its threads."""

    rows: int
    classes: int
    threads: int


# Every tile gives a thread 8 elements: two 128-bit loads of float32 or one of a 16-bit type. That leaves registers for
# many threads: 1,000 of them on a multiprocessor keep 32 KB in flight, twice what 3 TB/s over 132 of them asks for.
# Classes are independent in the power mean, so wide rows are cut into blocks of 128 classes (512 bytes of float32).
COLUMN_TILES = (Tile(32, 32, 128), Tile(8, 128, 128))
# A softmax needs its row whole.
ROW_TILES = (Tile(64, 32, 256), Tile(8, 256, 256), Tile(2, 1024, 256), Tile(1, 2048, 256))
LONG_TILE = Tile(1, 2048, 256)  # rows of more than 2,048 classes are looped over
CHUNK_TILE = Tile(8, 128, 128)  # stage two


def column_tile(C: int) -> Tile:
    """Tile of the power mean for C classes."""
    return next((tile for tile in COLUMN_TILES if tile.classes >= C), COLUMN_TILES[-1])


def row_tile(C: int) -> Tile | None:
    """Smallest tile that holds a whole row of C classes, or None when the row must be looped over."""
    return next((tile for tile in ROW_TILES if tile.classes >= C), None)


class Chunks(NamedTuple):
    """How rows are dealt to programs."""

    rows: torch.Tensor  # [N, 4] int64: first row, rows, image, rows of the image
    images: torch.Tensor  # [B, 3] int64: first chunk, chunks, rows


@lru_cache(maxsize=64)
def chunks(bounds: tuple[int, ...], tile_rows: int, programs: int, device: torch.device) -> Chunks:
    """Cut each image into chunks of whole tiles, of one size for the call; it depends on nothing but the sizes."""
    size = max(1, -(-bounds[-1] // (programs * tile_rows))) * tile_rows
    rows: list[tuple[int, ...]] = []
    images: list[tuple[int, ...]] = []
    for image, (start, stop) in enumerate(pairwise(bounds)):
        images.append((len(rows), -(-(stop - start) // size), stop - start))
        rows += [(first, min(size, stop - first), image, stop - start) for first in range(start, stop, size)]
    return Chunks(torch.tensor(rows, device=device), torch.tensor(images, device=device))


def power_mean(scores: torch.Tensor, bounds: tuple[int, ...], k: float) -> torch.Tensor:
    """``[M, C]`` scores → ``[B, C]`` float32."""
    scores, C = aligned(scores), scores.shape[1]
    tile, VEC, bits = column_tile(C), vector(scores.dtype, C), lift(k)
    blocks = -(-C // tile.classes)
    at = chunks(bounds, tile.rows, -(-PROGRAMS // blocks), scores.device)
    partials = scores.new_empty(len(at.rows), C, dtype=torch.float32)
    FORMS.launch(
        power_sums, (len(at.rows), blocks), scores, at.rows, partials, k, _times(k), 2.0**bits, C // VEC,
        VEC=VEC, BLOCK_M=tile.rows, BLOCK_C=tile.classes,
    )  # fmt: skip
    return _add_chunks(partials, at.images, 2.0 ** (-bits * k))


def power_mean_backward(grad: torch.Tensor, scores: torch.Tensor, bounds: tuple[int, ...], k: float) -> torch.Tensor:
    """Gradient of the scores: ``[B, C]`` → ``[M, C]``."""
    scores, grad, C = aligned(scores), aligned(grad.float()), scores.shape[1]
    tile, VEC, bits = column_tile(C), vector(scores.dtype, C), lift(k - 1)
    blocks = -(-C // tile.classes)
    at = chunks(bounds, tile.rows, -(-PROGRAMS // blocks), scores.device)
    out = torch.empty_like(scores)
    FORMS.launch(
        power_grads, (len(at.rows), blocks), scores, at.rows, grad, out,
        k - 1, _times(k - 1), 2.0**bits, 2.0 ** (-bits * (k - 1)), k, C // VEC,
        VEC=VEC, BLOCK_M=tile.rows, BLOCK_C=tile.classes,
    )  # fmt: skip
    return out


def softmax_power_mean(
    logits: torch.Tensor, bounds: tuple[int, ...], k: float, return_probabilities: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[M, C]`` logits → ``[B, C]`` float32 and the probabilities, ``[M, C]`` or ``[0, C]``."""
    logits, (M, C) = aligned(logits), logits.shape
    tile, VEC = row_tile(C), vector(logits.dtype, C)
    kernel = softmax_sums if tile else long_softmax_sums
    programs = PROGRAMS if tile else LONG_PROGRAMS
    tile = tile or LONG_TILE
    at = chunks(bounds, tile.rows, programs, logits.device)
    partials = logits.new_empty(len(at.rows), C, dtype=torch.float32)
    probabilities = logits.new_empty(M if return_probabilities else 0, C, dtype=torch.float32)
    FORMS.launch(
        kernel, (len(at.rows),), logits, at.rows, partials, probabilities if return_probabilities else partials,
        int(return_probabilities), k, C // VEC,
        VEC=VEC, BLOCK_M=tile.rows, BLOCK_C=tile.classes,
    )  # fmt: skip
    return _add_chunks(partials, at.images, 2.0**-HEADROOM), probabilities


def softmax_power_mean_backward(
    grad: torch.Tensor,
    grad_probabilities: torch.Tensor | None,
    logits: torch.Tensor,
    bounds: tuple[int, ...],
    k: float,
) -> torch.Tensor:
    """Gradient of the logits: ``[B, C]`` → ``[M, C]``."""
    logits, grad, C = aligned(logits), aligned(grad.float()), logits.shape[1]
    tile, VEC = row_tile(C), vector(logits.dtype, C)
    kernel = softmax_grads if tile else long_softmax_grads
    programs = PROGRAMS if tile else LONG_PROGRAMS
    tile = tile or LONG_TILE
    at = chunks(bounds, tile.rows, programs, logits.device)
    grad_y = grad if grad_probabilities is None else aligned(grad_probabilities.float())
    out = torch.empty_like(logits)
    FORMS.launch(
        kernel, (len(at.rows),), logits, at.rows, grad, grad_y, out,
        int(grad_probabilities is not None), k, 2.0**-HEADROOM, C // VEC,
        VEC=VEC, BLOCK_M=tile.rows, BLOCK_C=tile.classes,
    )  # fmt: skip
    return out


def _add_chunks(partials: torch.Tensor, images: torch.Tensor, lowered: float) -> torch.Tensor:
    C, tile = partials.shape[1], CHUNK_TILE
    VEC = vector(torch.float32, C)
    means = partials.new_empty(len(images), C)
    FORMS.launch(
        add_chunks, (len(images), -(-C // tile.classes)), partials, images, means, lowered, C // VEC,
        VEC=VEC, BLOCK_N=tile.rows, BLOCK_C=tile.classes,
    )  # fmt: skip
    return means


def _times(exponent: float) -> int:
    return int(exponent) if is_whole(exponent) else -1


def _forms() -> Iterator[Form]:
    for dtype in TRITON_DTYPES:
        x = "*" + NAMES[dtype]
        sums = (x, "*i64", "*fp32", "fp32", "i32", "fp32", "i32")
        grads = (x, "*i64", "*fp32", x, "fp32", "i32", "fp32", "fp32", "fp32", "i32")
        softmax = (x, "*i64", "*fp32", "*fp32", "i32", "fp32", "i32")
        softmax_back = (x, "*i64", "*fp32", "*fp32", x, "i32", "fp32", "fp32", "i32")
        for VEC in vectors(dtype):
            for tile in COLUMN_TILES:
                constants = (("VEC", VEC), ("BLOCK_M", tile.rows), ("BLOCK_C", tile.classes))
                yield Form(power_sums, sums, constants, tile.threads)
                yield Form(power_grads, grads, constants, tile.threads)
            for tile in (*ROW_TILES, LONG_TILE):
                constants = (("VEC", VEC), ("BLOCK_M", tile.rows), ("BLOCK_C", tile.classes))
                short = tile is not LONG_TILE
                yield Form(softmax_sums if short else long_softmax_sums, softmax, constants, tile.threads)
                yield Form(softmax_grads if short else long_softmax_grads, softmax_back, constants, tile.threads)
    for VEC in vectors(torch.float32):
        constants = (("VEC", VEC), ("BLOCK_N", CHUNK_TILE.rows), ("BLOCK_C", CHUNK_TILE.classes))
        yield Form(add_chunks, ("*fp32", "*i64", "*fp32", "fp32", "i32"), constants, CHUNK_TILE.threads)


FORMS = Forms(_forms())
