"""The kernels of the power mean: one idea each, no host code.

Stage one: each program takes one chunk of rows of one image and leaves one row of partial sums. Stage two adds the
chunks of an image in order. No atomics, so the same bits on each run. ``units·VEC`` is the number of classes C: the
product tells the compiler that a row starts on a 128-bit boundary.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
HEADROOM = tl.constexpr(60.0)  # powers.HEADROOM
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def power(y: tl.tensor, exponent: tl.float32, times: tl.int32) -> tl.tensor:
    """Raise ``y`` by ``times`` multiplications, or by exp2 and log2 when ``times`` is negative."""
    result = tl.full(y.shape, 1.0, tl.float32)
    if times >= 0:
        for _ in range(times):
            result = result * y
    else:
        result = tl.exp2(exponent * tl.log2(y))
    return result


@triton.jit(do_not_specialize=["exponent", "times", "raised", "units"])
def power_sums(
    scores: tl.tensor,  # [M, C]
    chunks: tl.tensor,  # [N, 4] first row, rows, image, rows of the image
    partials: tl.tensor,  # [N, C]
    exponent: tl.float32,
    times: tl.int32,
    raised: tl.float32,  # 2^lift
    units: tl.int32,
    VEC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Sum the lifted powers of one chunk of rows and one block of classes."""
    chunk = tl.program_id(0).to(tl.int64)
    C = units * VEC
    rows = tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.load(chunks + 4 * chunk)
    count = tl.load(chunks + 4 * chunk + 1).to(tl.int32)
    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    at = rows[:, None] * C + cols[None, :]  # 32-bit, within a tile; the tile's own start is 64-bit and scalar
    for i in range(0, count, BLOCK_M):
        inside = (i + rows < count)[:, None] & (cols < C)[None, :]
        y = tl.load(scores + (first + i) * C + at, inside, other=0.0)
        total += power(y.to(tl.float32) * raised, exponent, times)
    tl.store(partials + chunk * C + cols, tl.sum(total, 0), cols < C)


@triton.jit(do_not_specialize=["exponent", "times", "raised", "lowered", "k", "units"])
def power_grads(
    scores: tl.tensor,  # [M, C]
    chunks: tl.tensor,  # [N, 4]
    grads: tl.tensor,  # [B, C] of the means
    out: tl.tensor,  # [M, C] of the scores
    exponent: tl.float32,  # k - 1
    times: tl.int32,
    raised: tl.float32,  # 2^lift
    lowered: tl.float32,  # 2^(-lift·(k - 1))
    k: tl.float32,
    units: tl.int32,
    VEC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Gradient of one chunk of rows: ``k/M · g · y^(k-1)``."""
    chunk = tl.program_id(0).to(tl.int64)
    C = units * VEC
    rows = tl.arange(0, BLOCK_M)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.load(chunks + 4 * chunk)
    count = tl.load(chunks + 4 * chunk + 1).to(tl.int32)
    image = tl.load(chunks + 4 * chunk + 2)
    share = k / tl.load(chunks + 4 * chunk + 3).to(tl.float32)
    grad = tl.load(grads + image * C + cols, cols < C, other=0.0) * share  # [BLOCK_C]
    at = rows[:, None] * C + cols[None, :]  # 32-bit, within a tile; the tile's own start is 64-bit and scalar
    for i in range(0, count, BLOCK_M):
        inside = (i + rows < count)[:, None] & (cols < C)[None, :]
        start = (first + i) * C
        y = tl.load(scores + start + at, inside, other=0.0).to(tl.float32) * raised
        slope = power(y, exponent, times) * grad[None, :] * lowered
        tl.store(out + start + at, slope.to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["lowered", "units"])
def add_chunks(
    partials: tl.tensor,  # [N, C]
    images: tl.tensor,  # [B, 3] first chunk, chunks, rows
    means: tl.tensor,  # [B, C]
    lowered: tl.float32,  # 2^(-lift·k)
    units: tl.int32,
    VEC: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Stage two: add the chunks of one image in order, and divide by its rows."""
    image = tl.program_id(0).to(tl.int64)
    C = units * VEC
    rows = tl.arange(0, BLOCK_N)
    cols = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.load(images + 3 * image)
    count = tl.load(images + 3 * image + 1).to(tl.int32)
    weight = lowered / tl.load(images + 3 * image + 2).to(tl.float32)
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    at = rows[:, None] * C + cols[None, :]
    for i in range(0, count, BLOCK_N):
        inside = (i + rows < count)[:, None] & (cols < C)[None, :]
        total += tl.load(partials + (first + i) * C + at, inside, other=0.0)
    tl.store(means + image * C + cols, tl.sum(total, 0) * weight, cols < C)


@triton.jit
def log2_softmax(z: tl.tensor, cols: tl.tensor, C: tl.int32) -> tl.tensor:
    """Base-2 logarithm of the softmax of each row of a tile that holds whole rows."""
    z = tl.where((cols < C)[None, :], z.to(tl.float32), float("-inf"))  # [BLOCK_M, BLOCK_C]
    x = (z - tl.max(z, 1)[:, None]) * LOG2_E
    return x - tl.log2(tl.sum(tl.exp2(x), 1))[:, None]


@triton.jit(do_not_specialize=["wanted", "k", "units"])
def softmax_sums(
    logits: tl.tensor,  # [M, C]
    chunks: tl.tensor,  # [N, 4]
    partials: tl.tensor,  # [N, C]
    probabilities: tl.tensor,  # [M, C], written when wanted is 1
    wanted: tl.int32,
    k: tl.float32,
    units: tl.int32,
    VEC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Sum the lifted powers of the softmax of one chunk of rows; a tile holds whole rows, read once."""
    chunk = tl.program_id(0).to(tl.int64)
    C = units * VEC
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_C)
    first = tl.load(chunks + 4 * chunk)
    count = tl.load(chunks + 4 * chunk + 1).to(tl.int32)
    total = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    at = rows[:, None] * C + cols[None, :]  # 32-bit, within a tile; the tile's own start is 64-bit and scalar
    for i in range(0, count, BLOCK_M):
        held = (i + rows < count)[:, None]
        inside = held & (cols < C)[None, :]
        start = (first + i) * C
        x = log2_softmax(tl.load(logits + start + at, inside, other=0.0), cols, C)
        tl.store(probabilities + start + at, tl.exp2(x), inside & (wanted != 0))
        total += tl.where(held, tl.exp2(k * x + HEADROOM), 0.0)
    tl.store(partials + chunk * C + cols, tl.sum(total, 0), cols < C)


@triton.jit(do_not_specialize=["given", "k", "lowered", "units"])
def softmax_grads(
    logits: tl.tensor,  # [M, C]
    chunks: tl.tensor,  # [N, 4]
    grads: tl.tensor,  # [B, C] of the means
    grads_y: tl.tensor,  # [M, C] of the probabilities, read when given is 1
    out: tl.tensor,  # [M, C] of the logits
    given: tl.int32,
    k: tl.float32,
    lowered: tl.float32,  # 2^-HEADROOM
    units: tl.int32,
    VEC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """Gradient of one chunk of rows: ``t - y·Σt`` with ``t = k/M · g · y^k + g_y · y``; each logit is read once."""
    chunk = tl.program_id(0).to(tl.int64)
    C = units * VEC
    rows = tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_C)
    first = tl.load(chunks + 4 * chunk)
    count = tl.load(chunks + 4 * chunk + 1).to(tl.int32)
    image = tl.load(chunks + 4 * chunk + 2)
    share = k / tl.load(chunks + 4 * chunk + 3).to(tl.float32)
    grad = tl.load(grads + image * C + cols, cols < C, other=0.0) * share  # [BLOCK_C]
    at = rows[:, None] * C + cols[None, :]  # 32-bit, within a tile; the tile's own start is 64-bit and scalar
    for i in range(0, count, BLOCK_M):
        inside = (i + rows < count)[:, None] & (cols < C)[None, :]
        start = (first + i) * C
        x = log2_softmax(tl.load(logits + start + at, inside, other=0.0), cols, C)
        grad_y = tl.load(grads_y + start + at, inside & (given != 0), other=0.0)
        y = tl.exp2(x)
        t = grad[None, :] * tl.exp2(k * x + HEADROOM) + grad_y * (y / lowered)
        slope = (t - y * tl.sum(t, 1)[:, None]) * lowered
        tl.store(out + start + at, slope.to(out.dtype.element_ty), inside)
