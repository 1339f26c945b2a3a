"""What makes a function a command: its options spelled out, its errors one line each, its examples below its help."""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from inspect import Parameter
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape

from densescore.cli.console import complain, err, note, talk
from densescore.errors import DensescoreError, DensescoreWarning

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes: results and errors.", show_default=False)
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also say what is done, and how.", show_default=False)]


class Without(NamedTuple):
    """In the annotation of a group of options: those that the command does not have."""

    names: str  # with spaces between


class _Group(NamedTuple):
    default: Any
    names: list[str]


def command(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command.

    A parameter whose type is a dataclass is a group of options: each of the dataclass's fields becomes an option of the
    command, and the function gets them back as one object. The parameter's own default, which it must have, gives the
    options' defaults; ``Annotated[Group, Without("stride k")]`` leaves some out, which keep their defaults.

    All commands take ``--quiet`` and ``--verbose``. A `DensescoreWarning` is a note. A `DensescoreError` is printed in
    one line, and the command ends with status 2; an interrupt ends it with 130.

    Args:
        *examples: command lines, shown below the help.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        parameters, groups = _spell_out(function)

        @functools.wraps(function)
        def run(*, quiet: bool, verbose: bool, **options: Any) -> None:
            talk.quiet, talk.verbose = quiet, verbose
            for name, group in groups.items():
                options[name] = replace(group.default, **{option: options.pop(option) for option in group.names})
            try:
                with _warnings_in_a_line():
                    function(**options)
            except DensescoreError as error:
                complain(error)
                raise typer.Exit(2) from error
            except KeyboardInterrupt:
                err.print("stopped")
                raise typer.Exit(130) from None

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.epilog = "\n".join(("Examples:", *(f"  {escape(example)}" for example in examples)))  # type: ignore[attr-defined]
        return run

    return decorate


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Print densescore's own warnings as notes; those of other libraries stay as they are."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DensescoreWarning):
                note(f"note: {message}")
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        yield


def _spell_out(function: Callable[..., None]) -> tuple[list[Parameter], dict[str, _Group]]:
    """The function's parameters with each group's options in its place, and the groups."""
    parameters: list[Parameter] = []
    groups: dict[str, _Group] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        annotated = get_origin(parameter.annotation) is Annotated
        kind, *notes = get_args(parameter.annotation) if annotated else (parameter.annotation,)
        if not (isinstance(kind, type) and is_dataclass(kind)):
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
            continue
        default = parameter.default
        left_out = {name for given in notes for name in given.names.split()}
        hints = get_type_hints(kind, include_extras=True)
        names = [field.name for field in fields(kind) if field.name not in left_out]
        groups[parameter.name] = _Group(default, names)
        parameters += [
            Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(default, name), annotation=hints[name])
            for name in names
        ]
    for name, hint in (("quiet", Quiet), ("verbose", Verbose)):
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=hint))
    return parameters, groups


def register(app: typer.Typer, function: Callable[..., None], panel: str | None = None) -> None:
    """Add a `command` to an app, in a panel of its help."""
    app.command(rich_help_panel=panel, epilog=vars(function)["epilog"])(function)


def start(app: typer.Typer, name: str) -> None:
    """Run an app as a program, and exit with its status.

    What the terminal's encoding lacks is printed as escapes. A mistake in the arguments is one line, as other errors.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # replaced by something that is no text file
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        sys.exit(app(prog_name=name, standalone_mode=False))
    except Exception as error:  # typer has a click of its own, or uses click: two classes of one name
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ != "NoArgsIsHelpError":  # the help was printed
            complain(error.format_message())
            context = getattr(error, "ctx", None)
            note(f"see {name if context is None else context.command_path} --help")
        sys.exit(2)
