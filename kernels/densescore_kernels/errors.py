"""The one exception class of densescore and its kernels."""


class DensescoreError(ValueError):
    """Bad input: the message names the argument or file, what was got, and what was expected.

    Every error that densescore raises on purpose is one of these; it is public as ``densescore.DensescoreError``.
    """


def reason_of(error: BaseException) -> str:
    """The first line of another library's error, or the name of its class if it has no text.

    Example:
        >>> reason_of(EOFError()), reason_of(OSError("no such file"))
        ('EOFError', 'no such file')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
