"""Build hook: linked files of the repository outside docs/, and a page of all commands, become part of the site.

Pages link to files as ``../benchmarks/results/denser.json``, which also works in the repository.
"""

import io
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from rich.console import Console

from densescore.cli.main import app

_LINK = re.compile(r"(?<=\]\()\.\./([^)#]+)(?:#[\w-]+)?(?=\))")  # pages lie directly in docs/
_FOLDER = "repository/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the linked files, and those that linked Markdown files link to."""
    root = Path(config.docs_dir).parent
    queue = [root / link for page in files.documentation_pages() for link in _LINK.findall(page.content_string)]
    while queue:
        path = queue.pop()
        name = _FOLDER + path.relative_to(root).as_posix()
        if not path.is_file() or name in files.src_uris:
            continue
        files.append(File.generated(config, name, content=path.read_bytes()))
        if path.suffix == ".md":
            queue += [path.parent / link for link in re.findall(r"\]\(([\w.-]+)\)", path.read_text(encoding="utf-8"))]
    files.append(File.generated(config, "commands.md", content=command_reference()))
    return files


def command_reference() -> str:
    """A page of the help of each command."""
    parts = ["# Commands\n"]
    for name in (name for name in app if not name.startswith("-")):
        text = io.StringIO()
        app.help_print([name], console=Console(file=text, width=100))
        parts.append(f"## {name}\n\n```text\n{text.getvalue().strip()}\n```\n")
    return "\n".join(parts)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links there."""
    return _LINK.sub(rf"{_FOLDER}\1", markdown)
