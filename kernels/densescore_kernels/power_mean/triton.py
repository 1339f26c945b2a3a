"""The power mean in Triton: kernels, launches and launch configurations.

Stage one: each program takes one chunk of rows of one image and leaves one row of partial sums. Stage two adds the
chunks of an image in order. No atomics, so the same bits on each run. A row has ``row_length = row_vectors·VEC``
classes: the product tells the compiler that a row starts on a 128-bit boundary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from densescore_kernels.checks import TRITON_DTYPES
from densescore_kernels.launch import TYPE_NAMES, Budget, Config, Configs, aligned, vector, vectors
from densescore_kernels.power_mean.torch_version import integer_power, scale_exponent

# Kernels


@triton.jit
def power(y: tl.tensor, exponent: tl.float32, integer_power: tl.int32) -> tl.tensor:
    """Raise ``y`` by ``integer_power`` multiplications, or by exp2 and log2 when it is negative."""
    result = tl.full(y.shape, 1.0, tl.float32)
    if integer_power >= 0:
        for _ in range(integer_power):
            result = result * y
    else:
        result = tl.exp2(exponent * tl.log2(y))
    return result


@triton.jit(do_not_specialize=["exponent", "integer_power", "scale", "row_vectors"])
def power_sums(
    scores: tl.tensor,  # [M, C]
    chunks: tl.tensor,  # [N, 4] first row, rows, image, rows of the image
    partials: tl.tensor,  # [N, C]
    exponent: tl.float32,
    integer_power: tl.int32,
    scale: tl.float32,  # 2^scale_exponent
    row_vectors: tl.int32,  # C / VEC
    VEC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Sum the scaled powers of one chunk of rows and one block of classes."""
    chunk = tl.program_id(0).to(tl.int64)
    row_length = row_vectors * VEC
    rows = tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.load(chunks + 4 * chunk)
    count = tl.load(chunks + 4 * chunk + 1).to(tl.int32)
    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    at = rows[:, None] * row_length + cols[None, :]  # 32-bit, within a tile; its start is 64-bit and scalar
    for i in range(0, count, BLOCK_M):
        inside = (i + rows < count)[:, None] & (cols < row_length)[None, :]
        y = tl.load(scores + (first + i) * row_length + at, inside, other=0.0)
        total += power(y.to(tl.float32) * scale, exponent, integer_power)
    tl.store(partials + chunk * row_length + cols, tl.sum(total, 0), cols < row_length)


@triton.jit(do_not_specialize=["exponent", "integer_power", "scale", "unscale", "k", "row_vectors"])
def power_grads(
    scores: tl.tensor,  # [M, C]
    chunks: tl.tensor,  # [N, 4] first row, rows, image, rows of the image
    grads: tl.tensor,  # [B, C] of the means
    out: tl.tensor,  # [M, C] of the scores
    exponent: tl.float32,  # k - 1
    integer_power: tl.int32,
    scale: tl.float32,  # 2^scale_exponent
    unscale: tl.float32,  # 2^(-scale_exponent·(k - 1))
    k: tl.float32,
    row_vectors: tl.int32,  # C / VEC
    VEC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Gradient of one chunk of rows: ``k/M · g · y^(k-1)``."""
    chunk = tl.program_id(0).to(tl.int64)
    row_length = row_vectors * VEC
    rows = tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.load(chunks + 4 * chunk)
    count = tl.load(chunks + 4 * chunk + 1).to(tl.int32)
    image = tl.load(chunks + 4 * chunk + 2)
    weight = k / tl.load(chunks + 4 * chunk + 3).to(tl.float32)
    grad = tl.load(grads + image * row_length + cols, cols < row_length, other=0.0) * weight  # [BLOCK_C]
    at = rows[:, None] * row_length + cols[None, :]  # 32-bit, within a tile; its start is 64-bit and scalar
    for i in range(0, count, BLOCK_M):
        inside = (i + rows < count)[:, None] & (cols < row_length)[None, :]
        start = (first + i) * row_length
        y = tl.load(scores + start + at, inside, other=0.0).to(tl.float32) * scale
        slope = power(y, exponent, integer_power) * grad[None, :] * unscale
        tl.store(out + start + at, slope.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["unscale", "row_vectors"])
def add_chunks(
    partials: tl.tensor,  # [N, C]
    images: tl.tensor,  # [B, 3] first chunk, chunks, rows
    means: tl.tensor,  # [B, C]
    unscale: tl.float32,  # 2^(-scale_exponent·k)
    row_vectors: tl.int32,  # C / VEC
    VEC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Stage two: add the chunks of one image in order, and divide by its rows."""
    image = tl.program_id(0).to(tl.int64)
    row_length = row_vectors * VEC
    rows = tl.arange(0, BLOCK_N)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.load(images + 3 * image)
    count = tl.load(images + 3 * image + 1).to(tl.int32)
    weight = unscale / tl.load(images + 3 * image + 2).to(tl.float32)
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    at = rows[:, None] * row_length + cols[None, :]
    for i in range(0, count, BLOCK_N):
        inside = (i + rows < count)[:, None] & (cols < row_length)[None, :]
        total += tl.load(partials + (first + i) * row_length + at, inside, other=0.0)
    tl.store(means + image * row_length + cols, tl.sum(total, 0) * weight, cols < row_length)


# Launches

PROGRAMS = 512  # programs of stage one that a large call aims at: about four on each multiprocessor of an H100


class Tile(NamedTuple):
    """Rows and classes that a program holds at a time, and its threads."""

    rows: int
    classes: int
    threads: int


# Every tile gives a thread 8 elements: two 128-bit loads of float32 or one of a 16-bit type. That leaves registers for
# many threads: 1,000 of them on a multiprocessor keep 32 KB in flight, twice what 3 TB/s over 132 of them asks for.
# Classes are independent, so wide rows are cut into blocks of 128 classes (512 bytes of float32).
COLUMN_TILES = (Tile(32, 32, 128), Tile(8, 128, 128))
CHUNK_TILE = Tile(8, 128, 128)  # stage two


class Chunks(NamedTuple):
    """How rows are dealt to programs."""

    rows: torch.Tensor  # [N, 4] int64: first row, rows, image, rows of the image
    images: torch.Tensor  # [B, 3] int64: first chunk, chunks, rows


def power_mean(scores: torch.Tensor, bounds: tuple[int, ...], k: float) -> torch.Tensor:
    """``[M, C]`` scores → ``[B, C]`` float32."""
    scores, C = aligned(scores), scores.shape[1]
    tile, VEC, bits = column_tile(C), vector(scores.dtype, C), scale_exponent(k)
    blocks = -(-C // tile.classes)
    at = chunks(bounds, tile.rows, -(-PROGRAMS // blocks), scores.device)

    # Stage one: partial sums of each chunk of rows
    partials = scores.new_empty(len(at.rows), C, dtype=torch.float32)
    CONFIGS.launch(
        power_sums, (len(at.rows), blocks), scores, at.rows, partials, k, _multiplications(k), 2.0**bits, C // VEC,
        VEC=VEC, BLOCK_M=tile.rows, BLOCK_C=tile.classes,
    )  # fmt: skip

    # Stage two: means of each image
    tile, VEC = CHUNK_TILE, vector(torch.float32, C)
    means = partials.new_empty(len(at.images), C)
    CONFIGS.launch(
        add_chunks, (len(at.images), -(-C // tile.classes)), partials, at.images, means, 2.0 ** (-bits * k), C // VEC,
        VEC=VEC, BLOCK_N=tile.rows, BLOCK_C=tile.classes,
    )  # fmt: skip
    return means


def power_mean_backward(grad: torch.Tensor, scores: torch.Tensor, bounds: tuple[int, ...], k: float) -> torch.Tensor:
    """Gradient of the scores: ``[B, C]`` → ``[M, C]``."""
    scores, grad, C = aligned(scores), aligned(grad.float()), scores.shape[1]
    tile, VEC, bits = column_tile(C), vector(scores.dtype, C), scale_exponent(k - 1)
    blocks = -(-C // tile.classes)
    at = chunks(bounds, tile.rows, -(-PROGRAMS // blocks), scores.device)
    out = torch.empty_like(scores)
    CONFIGS.launch(
        power_grads, (len(at.rows), blocks), scores, at.rows, grad, out,
        k - 1, _multiplications(k - 1), 2.0**bits, 2.0 ** (-bits * (k - 1)), k, C // VEC,
        VEC=VEC, BLOCK_M=tile.rows, BLOCK_C=tile.classes,
    )  # fmt: skip
    return out


def column_tile(C: int) -> Tile:
    """Tile of stage one for C classes."""
    return next((tile for tile in COLUMN_TILES if tile.classes >= C), COLUMN_TILES[-1])


def chunks(bounds: tuple[int, ...], tile_rows: int, programs: int, device: torch.device) -> Chunks:
    """`_chunks` on a device, copied in the order of its queue: nobody waits, and each stream has its own."""
    return Chunks(*(table.to(device, non_blocking=True) for table in _chunks(bounds, tile_rows, programs)))


@lru_cache(maxsize=64)
def _chunks(bounds: tuple[int, ...], tile_rows: int, programs: int) -> Chunks:
    """Cut each image into chunks of whole tiles, of one size for the call; it depends on nothing but the sizes."""
    size = max(1, -(-bounds[-1] // (programs * tile_rows))) * tile_rows
    rows: list[tuple[int, ...]] = []
    images: list[tuple[int, ...]] = []
    for image, (start, stop) in enumerate(pairwise(bounds)):
        images.append((len(rows), -(-(stop - start) // size), stop - start))
        rows += [(first, min(size, stop - first), image, stop - start) for first in range(start, stop, size)]
    return Chunks(torch.tensor(rows), torch.tensor(images))


def _multiplications(exponent: float) -> int:
    """``integer_power`` as the kernels take it: -1 for exp2 and log2."""
    multiplications = integer_power(exponent)
    return -1 if multiplications is None else multiplications


# Launch configurations


def _configs() -> Iterator[Config]:
    for dtype in TRITON_DTYPES:
        x = "*" + TYPE_NAMES[dtype]
        sums = (x, "*i64", "*fp32", "fp32", "i32", "fp32", "i32")
        grads = (x, "*i64", "*fp32", x, "fp32", "i32", "fp32", "fp32", "fp32", "i32")
        for VEC in vectors(dtype):
            for tile in COLUMN_TILES:
                constants = (("VEC", VEC), ("BLOCK_M", tile.rows), ("BLOCK_C", tile.classes))
                yield Config(power_sums, sums, constants, tile.threads)
                yield Config(power_grads, grads, constants, tile.threads)
    for VEC in vectors(torch.float32):
        constants = (("VEC", VEC), ("BLOCK_N", CHUNK_TILE.rows), ("BLOCK_C", CHUNK_TILE.classes))
        yield Config(add_chunks, ("*fp32", "*i64", "*fp32", "fp32", "i32"), constants, CHUNK_TILE.threads)


CONFIGS = Configs(
    _configs(),
    {
        "power_sums": Budget(wide=48, single=64, shared=2048),
        "power_grads": Budget(wide=48, single=72, shared=1024),
        "add_chunks": Budget(wide=48, single=56, shared=4096),
    },
)
