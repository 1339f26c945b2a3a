"""Files of a data set that strangers made: regular files only, within the set's folder, in any usual encoding."""

import codecs
import os
import re
import stat
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from densescore.data.problems import Problems

MAX_TEXT = 64 * 2**20
"""Bytes that a list, a label file or an XML annotation may have; real ones have a few thousand."""

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


def is_file(path: Path) -> bool:
    """Whether a path is a regular file: no folder, device or pipe, and a name that the system can hold."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # too long a name, a NUL or a lone surrogate in it
        return False


def is_inside(name: str) -> bool:
    """Whether a file's name in an annotation stays within the set's folder: not absolute, without ``..``."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    try:
        name.encode()
    except UnicodeError:  # a lone surrogate
        return False
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\0" not in name


def read_text(path: Path, problems: Problems) -> str | None:
    """The text of a file in UTF-8, or in what its byte order mark says; None, with a problem noted, if it has none."""
    content = _read_bytes(path, problems)
    return None if content is None else _decode(content, "utf-8", path, problems)


def read_lines(path: Path, problems: Problems) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, each with its number from 1."""
    text = read_text(path, problems) or ""
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def read_xml(path: Path, problems: Problems) -> ElementTree.Element | None:
    """The root of an XML file, in any encoding that Python knows; None, with a problem noted, if it cannot be read."""
    content = _read_bytes(path, problems)
    if content is None:
        return None
    declared = _DECLARED.match(content)
    text = _decode(content, declared[1].decode() if declared else "utf-8", path, problems)
    try:
        return None if text is None else ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        problems.add(path, f"not valid XML: {error}")
        return None


def _read_bytes(path: Path, problems: Problems) -> bytes | None:
    if not is_file(path):
        problems.add(path, "not a regular file" if os.path.lexists(path) else "no such file")
        return None
    try:
        size = path.stat().st_size
        if size > MAX_TEXT:
            problems.add(path, f"has {size:,} bytes, more than {MAX_TEXT:,}")
            return None
        return path.read_bytes()
    except OSError as error:
        problems.add(path, f"cannot be read: {error.strerror}")
        return None


def _decode(content: bytes, encoding: str, path: Path, problems: Problems) -> str | None:
    for mark, marked in _MARKS:
        if content.startswith(mark):
            content, encoding = content[len(mark) :], marked
    try:
        return content.decode(encoding)
    except (UnicodeError, LookupError) as error:
        problems.add(path, f"not text in the encoding {encoding}: {error}")
        return None
