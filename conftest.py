"""Pytest's collection: the page's modules import only where its extra is installed."""

from importlib.util import find_spec

_PAGE = ["densescore/demo/api.py", "densescore/demo/server.py", "tests/demo/fuzz_page.py"]
collect_ignore = [] if find_spec("fastapi") else _PAGE
