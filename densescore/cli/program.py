"""How the programs begin and end: options of all commands, warnings, errors, exit status."""

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter

from densescore.cli.console import err, error, notice, verbosity
from densescore.errors import DensescoreError, DensescoreWarning

GENERAL = Group("All commands", sort_key=99)
Quiet = Annotated[bool, Parameter(("--quiet", "-q"), group=GENERAL, help="Print results and errors only.")]
Verbose = Annotated[bool, Parameter(("--verbose", "-v"), group=GENERAL, help="Also print the model and its settings.")]

_MAY_BE_EMPTY = ("--contenders", "--root-path")  # texts, not paths

EXAMPLES: dict[Callable[..., None], str] = {}
"""End of each command's help."""


def examples(*lines: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Command lines to show at the end of a command's help."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        EXAMPLES[function] = "\n  ".join(("Examples:", *lines))
        return function

    return register


def _version() -> str:
    from densescore import __version__

    return f"densescore {__version__}"


def make_app(name: str, about: str = "") -> App:
    """An app whose commands all take ``--quiet`` and ``--verbose``; its entry is ``app.meta``."""
    app = App(
        name,
        help=about,
        help_format="plaintext",
        version=_version,
        version_flags="--version",
        group_parameters=Group("Options", sort_key=-1),
        default_parameter=Parameter(
            negative=(), allow_repeating=True, show_default=lambda value: None if value in ("", False) else value
        ),
    )
    app.suppress_keyboard_interrupt = app.meta.suppress_keyboard_interrupt = False  # `start` handles it
    for flag in ("--help", "--version"):
        app[flag].group = GENERAL

    @app.meta.default
    def launch(
        *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        quiet: Quiet = False,
        verbose: Verbose = False,
    ) -> None:
        verbosity.quiet, verbosity.verbose = quiet, verbose
        for before, word in zip(("", *words), words, strict=False):
            empty = not word or (word.startswith("--") and word.endswith("="))
            if empty and (word or before).rstrip("=") not in _MAY_BE_EMPTY:  # Path("") is the working folder
                raise DensescoreError(f"{(word or before).rstrip('=') or 'an argument'}: got an empty text")
        app(words, print_error=False, exit_on_error=False, result_action="return_value")

    return app


def start(program: App, words: Sequence[str] | None = None) -> NoReturn:
    """Run a program and exit with its status: 0, 1 (some images failed), 2 (an error), or 130 (interrupted)."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # replaced by an object that is no text file
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with _warnings_as_notices():
            program.meta(words, print_error=False, exit_on_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as problem:
        error(problem)
        notice(f"see {' '.join((program.name[0], *(problem.command_chain or ())))} --help")
        sys.exit(2)
    except DensescoreError as problem:
        error(problem)
        sys.exit(2)
    except OSError as problem:
        place = problem.filename
        if place is None and problem.errno in (errno.ENOSPC, errno.EPIPE):  # of other files, a `WriteError` tells
            place = "standard output"
            with open(os.devnull, "wb") as nothing:  # Python must not write the rest again at its end
                os.dup2(nothing.fileno(), 1)
        error(f"{place}: {problem.strerror}" if place else str(problem))
        sys.exit(2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends the process without more words
        err.print("stopped")
        sys.exit(130)
    sys.exit(0)


@contextmanager
def _warnings_as_notices() -> Iterator[None]:
    """Print densescore's own warnings in one line each; those of other libraries as usual."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DensescoreWarning):
                notice(f"note: {message}")
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        yield
