"""Searching the index of a project: ``from stages.search import Searcher``, and the command ``search``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.search.searcher import Searcher

__all__ = ["Searcher"]


def __getattr__(name: str) -> Any:
    # Here alone a package is more than its docstring; what it gives is imported when it is asked for.
    if name == "Searcher":
        from stages.search.searcher import Searcher

        return Searcher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
