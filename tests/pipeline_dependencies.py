"""What each stage of ``dvc.yaml`` must depend on, found by walking its imports."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _module_file(name: str) -> Path | None:
    base = ROOT.joinpath(*name.split("."))
    return next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.exists()), None)


def imported_modules(file: Path) -> set[Path]:
    """Files of this project that `file` imports, directly, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] == "stages" and (target := _module_file(name)) and target.name != "__init__.py":
                found.add(target)
    return found


def code_dependencies(stage: str) -> set[str]:
    """The modules that a stage imports, with those that they import, as paths from the root."""
    todo = [ROOT / "stages" / stage / "stage.py", ROOT / "stages" / stage / "config.py"]
    seen: set[Path] = set()
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo += imported_modules(file)
    return {file.relative_to(ROOT).as_posix() for file in seen}


if __name__ == "__main__":
    import sys

    for stage in sys.argv[1:]:
        print(stage, *sorted(code_dependencies(stage)), sep="\n      - ")
