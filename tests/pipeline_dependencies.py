"""What each stage of ``dvc.yaml`` must depend on, found by walking the syntax trees of its modules."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def module_file(name: str) -> Path | None:
    """The file of a module of this project; of a package its ``__init__.py``."""
    base = ROOT.joinpath(*name.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()), None)


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Full names of everything that a module imports, at the top or in a function.

    Raises:
        ValueError: an import that this cannot follow: a relative one, or ``from x import *``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or any(alias.name == "*" for alias in node.names):
                raise ValueError(f"line {node.lineno}: {ast.unparse(node)}")
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(file: Path) -> set[Path]:
    """Files of this project that `file` imports; those of packages are docstrings alone and do not count."""
    names = {name for name in imported_names(tree_of(file)) if name.split(".")[0] == "stages"}
    return {found for name in names if (found := module_file(name)) and found.name != "__init__.py"}


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def code_files(stage: str) -> set[Path]:
    """The modules that a stage imports, with those that they import."""
    todo = [ROOT / "stages" / stage / "stage.py", ROOT / "stages" / stage / "config.py"]
    seen: set[Path] = set()
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo += imported_modules(file)
    return seen


def code_dependencies(stage: str) -> set[str]:
    """:func:`code_files` as paths from the root."""
    return {file.relative_to(ROOT).as_posix() for file in code_files(stage)}


def attributes_read(file: Path) -> set[str]:
    """Names of all attributes that a module reads, of whatever object."""
    nodes = ast.walk(tree_of(file))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def parameter_fields(model: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(path, name) of every field of a parameter class and of its sections."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", name
        if hasattr(field.annotation, "model_fields"):
            yield from parameter_fields(field.annotation, f"{prefix}{name}.")


if __name__ == "__main__":
    import sys

    for stage in sys.argv[1:]:
        print(stage, *sorted(code_dependencies(stage)), sep="\n      - ")
