"""The exceptions that densescore raises on purpose; all derive from `DensescoreError`."""

from densescore_kernels.errors import DensescoreError, reason_of

__all__ = ["DensescoreError", "NotConvolutionalError", "reason_of"]


class NotConvolutionalError(DensescoreError):
    """The network cannot be run over a whole image in one pass; the message names the layer that prevents it.

    It can still score patches one crop at a time: ``DenseScorer(module, context="patch")``.
    """
