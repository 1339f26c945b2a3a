"""The matrices of the Cook–Toom (Winograd) algorithm, in exact fractions; `densescore.network.cpu.winograd` uses them.

The points are near 1 in size and in pairs ±a, which keeps the matrices' entries, and so the rounding error, small.
"""

from collections.abc import Sequence
from fractions import Fraction

_POINTS = [Fraction(*point) for point in ((0, 1), (1, 1), (-1, 1), (1, 2), (-1, 2), (2, 1), (-2, 1))]
ONE = _POINTS.index(Fraction(1))

MOST_TAPS = len(_POINTS)
"""Largest r, with a tile of 2. A ninth point, ±¼ or ±4, would cost another digit and a half."""

Matrix = list[list[Fraction]]


def cook_toom(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """Aᵀ ``[m, t]``, G ``[t, r]`` and Bᵀ ``[t, t]``, t = m + r - 1, with y = Aᵀ [(G g) ⊙ (Bᵀ d)] exactly.

    The last point is infinity.
    """
    t = m + r - 1
    points = _POINTS[: t - 1]
    assert len(points) == t - 1
    zero, one = Fraction(0), Fraction(1)
    output = [[*(point**i for point in points), one if i == m - 1 else zero] for i in range(m)]
    kernel: Matrix = []
    data: Matrix = []
    for point in points:
        others = [other for other in points if other != point]
        scale = one
        for other in others:
            scale *= point - other
        kernel.append([point**i / scale for i in range(r)])
        data.append([*_expand(others), zero])
    kernel.append([zero] * (r - 1) + [one])
    data.append(_expand(points))
    return output, kernel, data


def _expand(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of ∏ (x - root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [root * c for c in coefficients] + [Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


def floats(matrix: Matrix) -> list[list[float]]:
    """The matrix in float64."""
    return [[float(value) for value in row] for row in matrix]
