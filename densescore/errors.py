"""The exceptions that densescore raises on purpose, which derive from `DensescoreError`, and its warnings."""

from densescore_kernels.errors import DensescoreError, reason_of

__all__ = [
    "DensescoreError",
    "DensescoreWarning",
    "MissingPackageError",
    "NotConvolutionalError",
    "OutOfMemoryError",
    "WriteError",
    "reason_of",
]


class DensescoreWarning(UserWarning):
    """What a user should know of an input that is taken all the same; on the command line it is one line."""


class NotConvolutionalError(DensescoreError):
    """The network cannot be run over a whole image in one pass; the message names the layer that prevents it.

    It can still score patches one crop at a time: ``DenseScorer(module, context="patch")``.
    """


class MissingPackageError(DensescoreError):
    """A package of an extra is not installed; the message names the extra."""


class OutOfMemoryError(DensescoreError):
    """Out of memory, even in smaller parts."""


class WriteError(DensescoreError):
    """A file or folder cannot be written: a full disk, no permission, a name that is too long."""
