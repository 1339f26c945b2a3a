"""Commands run within the test's process."""

import io
import os
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from cyclopts import App

from densescore.cli import main
from densescore.cli.program import start


@dataclass
class Result:
    """How a command ended, and its text."""

    exit_code: int
    stdout: str
    stderr: str
    exception: BaseException | None = None

    @property
    def output(self) -> str:
        trace = "" if self.exception is None else "".join(traceback.format_exception(self.exception))
        return self.stdout + self.stderr + trace

    @property
    def exc_info(self) -> tuple[type[BaseException], BaseException, TracebackType | None] | None:
        return None if self.exception is None else (type(self.exception), self.exception, self.exception.__traceback__)


class CliRunner:
    def invoke(self, app: App, words: Sequence[str]) -> Result:
        """Run a command line; errors that the program does not handle are in the result's `exception`."""
        out, err = io.StringIO(), io.StringIO()
        code, exception = 1, None
        with redirect_stdout(out), redirect_stderr(err):
            try:
                start(app, list(words))
            except SystemExit as end:
                code = int(end.code or 0)
            except Exception as error:
                exception = error
        return Result(code, out.getvalue(), err.getvalue(), exception)


def run(*words: str | os.PathLike[str]) -> Result:
    """Run ``densescore``."""
    return CliRunner().invoke(main.app, [os.fspath(word) for word in words])


def succeed(*words: str | os.PathLike[str]) -> Result:
    """Run ``densescore``, which ends with status 0."""
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result


def refuse(*words: str | os.PathLike[str], message: str) -> None:
    """Run ``densescore``, which ends with status 2 and this error."""
    result = run(*words)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output


def options_of(app: App, name: str = "") -> dict[str, Any]:
    """Each spelling of a command's options, and its parameter; those of all commands included."""
    commands = [app[name]] if name else [app] if app.default_command else []
    collections = [
        part.assemble_argument_collection(default_parameter=app.default_parameter) for part in (*commands, app.meta)
    ]
    return {
        spelling: argument.parameter
        for collection in collections
        for argument in collection
        for spelling in argument.names
        if argument.parse and spelling.startswith("-")
    }


def command_names(app: App) -> list[str]:
    """Names of the commands, in the menu's order."""
    return [name for name in app if not name.startswith("-")]
