"""The one exception class of densescore and its kernels."""


class DensescoreError(ValueError):
    """Bad input, named: what was given, what was got, what was expected.

    Every error that densescore raises on purpose is one of these; it is public as ``densescore.DensescoreError``.
    """
