"""Power mean and response maps: one operation, three ways.

Each operation has a slow float64 definition (``reference.py``), a vectorized torch version (what a CPU runs) and a
Triton version (what a GPU runs), behind one public function that is registered with ``torch.library``.
"""

from densescore_kernels.errors import DensescoreError
from densescore_kernels.grid import Grid, GridLevel
from densescore_kernels.power_mean.op import power_mean, softmax_power_mean
from densescore_kernels.response_map.op import response_map

__all__ = ["DensescoreError", "Grid", "GridLevel", "power_mean", "response_map", "softmax_power_mean"]
