"""What pytest may look at: modules of the page can be imported only where its extra is installed."""

from importlib.util import find_spec

_PAGE = [f"densescore/demo/{name}.py" for name in ("http", "page", "protocol", "server")]
collect_ignore = [] if find_spec("fastapi") else [*_PAGE, "tests/demo/fuzz_page.py"]
