"""Build hook: what lies in the repository outside docs/, on the site.

Pages link to it as ``../benchmarks/results/denser.json``, which works where they are read in the repository. On the
site a linked file becomes one of the site's own. A line that is only a link to a section, such as
``[Speed](../README.md#speed)``, becomes that section's text, so that each table is kept in one place.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_SECTION = re.compile(r"^\[[^\]]+\]\(\.\./([^)#]+\.md)#([\w-]+)\)$", re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()\.\./([^)#]+)(?:#[\w-]+)?(?=\))")  # pages lie directly in docs/
_PLACE = "repository/"


def section(path: Path, root: Path, anchor: str) -> str:
    """What stands below a heading, its links as from docs/."""
    if not path.is_file():
        raise PluginError(f"{path}: no such file, of which section #{anchor} is wanted")
    for part in re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, text = part.split("\n", 1)
        if re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) == anchor:
            folder = path.parent.relative_to(root).as_posix()
            inside = "../" if folder == "." else f"../{folder}/"
            text = re.sub(r"(?<=\]\()(?!https?:|#)", inside, text)
            return text.replace("](../docs/", "](").strip()
    raise PluginError(f"{path}: no section #{anchor}")


def expanded(markdown: str, root: Path) -> str:
    """A page with the sections that it takes from elsewhere; links to folders, which a site has not, are plain text."""
    text = _SECTION.sub(lambda found: section(root / found[1], root, found[2]), markdown)
    return re.sub(
        r"\[([^\]]*)\]\(\.\./([^)#]+)\)", lambda found: found[1] if (root / found[2]).is_dir() else found[0], text
    )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to, and what that links to."""
    root = Path(config.docs_dir).parent
    wanted = [
        root / target
        for page in files.documentation_pages()
        for target in _LINK.findall(expanded(page.content_string, root))
    ]
    while wanted:
        path = wanted.pop()
        place = _PLACE + path.relative_to(root).as_posix()
        if not path.is_file() or place in files.src_uris:
            continue
        files.append(File.generated(config, place, content=path.read_bytes()))
        if path.suffix == ".md":
            wanted += [path.parent / name for name in re.findall(r"\]\(([\w.-]+)\)", path.read_text(encoding="utf-8"))]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links there."""
    return _LINK.sub(rf"{_PLACE}\1", expanded(markdown, Path(config.docs_dir).parent))
