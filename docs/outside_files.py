"""Build hook: files of the repository outside docs/ that the pages link to become part of the site.

Pages link to them as ``../benchmarks/results/denser.json``, which also works in the repository.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

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
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links there."""
    return _LINK.sub(rf"{_FOLDER}\1", markdown)
