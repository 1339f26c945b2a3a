"""The exceptions that densescore raises on purpose; all derive from `DensescoreError`."""

from densescore_kernels.errors import DensescoreError, reason_of

__all__ = ["DensescoreError", "reason_of"]
