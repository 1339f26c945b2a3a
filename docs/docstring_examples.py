"""Griffe extension: docstrings say ``Example:``; the reader of docstrings knows the plural only."""

from typing import Any

import griffe


class Plural(griffe.Extension):
    """Makes code blocks of the examples."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
