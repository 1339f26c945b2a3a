"""The softmax kernels for rows that are longer than a tile: a loop over the classes, for a few rows at a time.

The first loop finds the maximum and the sum of each row together (a running sum that is rescaled when the maximum
grows), and brings the row from memory. The loops after it find the row in cache: 264 programs hold one row each, which
is 23 MB of float32 at C = 21,841, and their running sums as much again; an H100 has 50 MB of L2. So each logit crosses
the memory bus once, and what is touched again is touched in cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from densescore_kernels.power_mean.triton_kernels import HEADROOM, LOG2_E, LOWEST


@triton.jit
def row_statistics(
    logits: tl.tensor, held: tl.tensor, rows: tl.tensor, C: tl.int32, BLOCK_C: tl.constexpr
) -> tl.tensor:
    """Maximum, and base-2 logarithm of the sum of ``exp(z - maximum)``, of each of a few rows."""
    top = tl.full(rows.shape, LOWEST, tl.float32)
    total = tl.zeros(rows.shape, tl.float32)
    for j in range(0, C, BLOCK_C):
        cols = j + tl.arange(0, BLOCK_C)
        inside = held[:, None] & (cols < C)[None, :]
        z = tl.load(logits + rows[:, None] * C + cols[None, :], inside, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(z, 1))
        total = total * tl.exp2((top - higher) * LOG2_E) + tl.sum(tl.exp2((z - higher[:, None]) * LOG2_E), 1)
        top = higher
    return top, tl.log2(total)


@triton.jit(do_not_specialize=["wanted", "k", "units"])
def long_softmax_sums(
    logits: tl.tensor,  # [M, C]
    chunks: tl.tensor,  # [N, 4] first row, rows, image, rows of the image
    partials: tl.tensor,  # [N, C]
    probabilities: tl.tensor,  # [M, C], written when wanted is 1
    wanted: tl.int32,
    k: tl.float32,
    units: tl.int32,
    VEC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """As ``softmax_sums``; the sums of a chunk grow in its own row of ``partials``, which only this program touches."""
    chunk = tl.program_id(0).to(tl.int64)
    C = units * VEC
    rows = tl.arange(0, BLOCK_M)
    first = tl.load(chunks + 4 * chunk)
    count = tl.load(chunks + 4 * chunk + 1).to(tl.int32)
    for i in range(0, count, BLOCK_M):
        held = i + rows < count
        start = (first + i) * C
        top, log_sum = row_statistics(logits + start, held, rows, C, BLOCK_C)
        for j in range(0, C, BLOCK_C):
            cols = j + tl.arange(0, BLOCK_C)
            inside = held[:, None] & (cols < C)[None, :]
            at = rows[:, None] * C + cols[None, :]
            z = tl.load(logits + start + at, inside, other=0.0).to(tl.float32)
            x = (z - top[:, None]) * LOG2_E - log_sum[:, None]
            tl.store(probabilities + start + at, tl.exp2(x), inside & (wanted != 0))
            added = tl.sum(tl.where(inside, tl.exp2(k * x + HEADROOM), 0.0), 0)
            sums = partials + chunk * C + cols
            tl.store(sums, tl.load(sums, (cols < C) & (i > 0), other=0.0) + added, cols < C)
        tl.debug_barrier()  # what a thread wrote to partials is read by whichever thread comes next


@triton.jit(do_not_specialize=["given", "k", "lowered", "units"])
def long_softmax_grads(
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
    """As ``softmax_grads``: one loop for the statistics, one for ``Σt``, one that writes."""
    chunk = tl.program_id(0).to(tl.int64)
    C = units * VEC
    rows = tl.arange(0, BLOCK_M)
    first = tl.load(chunks + 4 * chunk)
    count = tl.load(chunks + 4 * chunk + 1).to(tl.int32)
    image = tl.load(chunks + 4 * chunk + 2)
    share = k / tl.load(chunks + 4 * chunk + 3).to(tl.float32)
    for i in range(0, count, BLOCK_M):
        held = i + rows < count
        start = (first + i) * C
        top, log_sum = row_statistics(logits + start, held, rows, C, BLOCK_C)
        total = tl.zeros([BLOCK_M], tl.float32)
        for again in range(2):
            for j in range(0, C, BLOCK_C):
                cols = j + tl.arange(0, BLOCK_C)
                inside = held[:, None] & (cols < C)[None, :]
                at = rows[:, None] * C + cols[None, :]
                z = tl.load(logits + start + at, inside, other=float("-inf")).to(tl.float32)
                x = (z - top[:, None]) * LOG2_E - log_sum[:, None]
                y = tl.exp2(x)
                grad = tl.load(grads + image * C + cols, cols < C, other=0.0) * share
                grad_y = tl.load(grads_y + start + at, inside & (given != 0), other=0.0)
                t = grad[None, :] * tl.exp2(k * x + HEADROOM) + grad_y * (y / lowered)
                if again == 0:
                    total += tl.sum(tl.where(inside, t, 0.0), 1)
                else:
                    slope = (t - y * total[:, None]) * lowered
                    tl.store(out + start + at, slope.to(out.dtype.element_ty), inside)
