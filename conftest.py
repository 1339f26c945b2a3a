"""What pytest may look at: modules of the page can be imported only where its extra is installed."""

from importlib.util import find_spec

collect_ignore = [
    f"densescore/demo/{name}.py" for name in ("http", "page", "protocol", "server") if find_spec("fastapi") is None
]
