"""Screens on which a page is looked at."""

import re
from typing import Any

SCREENS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True},
}


def check_screen(page: Any, name: str, selector: str) -> None:
    """Nothing is cut off, or to scroll sideways for; the background is as bright as asked for."""
    edges = page.evaluate(f"[...document.querySelectorAll('{selector}')].map(e => e.getBoundingClientRect().right)")
    edges.append(page.evaluate("document.documentElement.scrollWidth"))
    assert max(edges) <= page.viewport_size["width"]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 3 * 128) == (name != "dark")
