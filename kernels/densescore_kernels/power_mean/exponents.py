"""How y^k is taken, so that small scores keep their digits (no torch, no triton in it).

A score of 1e-8 is an ordinary probability among 21,841 classes, and its fifth power, 1e-40, is below 2^-126 where
float32 loses digits. So each score is first multiplied by 2^lift, which is exact; the mean of the lifted powers is
multiplied by 2^(-lift·k) once, at the end. With lift = floor(60 / k), and 60 for an exponent below 1, a term keeps all
its digits down to about y^k = 2^-186 (a little higher where 60 / k is not whole, and from k = 61 on there is no lift),
so what a mean of at least 2^-126 loses to underflow is, for the default k = 5, below 2^-60 of it. A mean below 2^-126
is rounded to the nearest subnormal number, and below 2^-149 it is 0, as in any float32. The price is at the other end:
the sum of y^k over an image must stay below 2^68, which probabilities do.

Whole k up to 16 is a repeated multiplication: relative error below k·2^-24, and 0^k = 0, 0^0 = 1. Any other k is
exp2(k·log2 y): log2 0 = -inf and exp2(-inf) = 0, so y = 0 needs no case of its own.
"""

from __future__ import annotations

from numbers import Real

from densescore_kernels.errors import DensescoreError

HEADROOM = 60  # bits by which a power is lifted
LARGEST_WHOLE = 16  # exponents up to here are repeated multiplications
LARGEST = 10_000  # of k: there the k-th root is within log(M) / k, 0.1 % for M = 20,000 patches, of the best patch


def check_exponent(k: float) -> float:
    """Return ``k`` as a float, or raise when it is not a number from 1 to `LARGEST`."""
    if isinstance(k, bool) or not isinstance(k, Real) or not 1 <= k <= LARGEST:
        raise DensescoreError(f"k: got {k!r}, expected a number from 1 to {LARGEST:,}")
    return float(k)


def is_whole(exponent: float) -> bool:
    """Whether ``exponent`` is taken by repeated multiplication.

    Example:
        >>> is_whole(5.0), is_whole(2.5), is_whole(40.0)
        (True, False, False)
    """
    return exponent == int(exponent) and exponent <= LARGEST_WHOLE


def lift(exponent: float) -> int:
    """Bits by which a score is lifted before it is raised to ``exponent``.

    Example:
        >>> lift(5.0), lift(1.0), lift(0.25), lift(0.0), lift(100.0)
        (12, 60, 60, 0, 0)
    """
    return int(HEADROOM / max(exponent, 1.0)) if exponent > 0 else 0
