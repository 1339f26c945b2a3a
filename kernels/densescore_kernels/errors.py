"""The one exception class of densescore and its kernels."""


class DensescoreError(ValueError):
    """Bad input, named: what was given, what was got, what was expected.

    Every error that densescore raises on purpose is one of these; it is public as ``densescore.DensescoreError``.
    """


def reason_of(error: BaseException) -> str:
    """The first line of what another library says; some say nothing, and are named.

    Example:
        >>> reason_of(EOFError()), reason_of(OSError("no such file"))
        ('EOFError', 'no such file')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
