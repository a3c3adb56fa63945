"""Which code a result comes from: a measurement is done again when a module that it goes through was changed."""

import ast
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from pathlib import Path

from stages.artifacts import fingerprint, sha256

PACKAGE = Path(__file__).parents[1]


def files_of(modules: Iterable[str], apart_from: Collection[str] = ()) -> list[Path]:
    """The files of `modules` (full names) and of all modules of this project that they import, sorted.

    Modules that only describe parameters are left out, since the values that they let through are known: ``config`` of
    each stage and ``stages.params``. So are those `apart_from`: a registry of many methods, say, of which one is used.
    """
    todo, seen, files = list(modules), {"stages.params", *apart_from}, set()
    while todo:
        name = todo.pop()
        if name in seen or name.endswith(".config"):
            continue
        seen.add(name)
        if file := _file(name):
            files.add(file)
            todo += _imports(file)
    return sorted(files)


def digest(files: Iterable[Path]) -> str:
    """A short hash of the content of `files`, and of their names."""
    return fingerprint([(file.name, _sha256(file)) for file in files])


def mentions(files: Iterable[Path], attribute: str) -> bool:
    """Whether one of `files` reads an attribute of that name."""
    return any(re.search(rf"\.{attribute}\b", _text(file)) for file in files)


def _file(name: str) -> Path | None:
    """The file of a module of this project; None for a package, whose own file is a docstring, and for what is none."""
    first, *rest = name.split(".")
    file = PACKAGE.joinpath(*rest).with_suffix(".py") if rest else None
    return file if first == PACKAGE.name and file and file.is_file() else None


@cache
def _sha256(file: Path) -> str:
    return sha256(file)


@cache
def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


@cache
def _imports(file: Path) -> tuple[str, ...]:
    return tuple(_imported_names(ast.parse(_text(file))))


def _imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
