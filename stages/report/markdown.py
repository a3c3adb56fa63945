"""Markdown out of untrusted text."""

import html
import re
from collections.abc import Iterable, Sequence


def escaped(text: object) -> str:
    """Text on one line in which Markdown and HTML see nothing but text.

    >>> print(escaped("a|b <i>c_d</i>"))
    a\\|b &lt;i&gt;c\\_d&lt;/i&gt;
    """
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def table(header: Sequence[object], rows: Iterable[Sequence[object]], numbers: int | None = None) -> str:
    """A table of escaped cells; columns from the `numbers`-th on (from 0) are aligned to the right."""
    rule = ["---" if numbers is None or place < numbers else "---:" for place in range(len(header))]
    lines = [[escaped(cell) for cell in header], rule, *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
