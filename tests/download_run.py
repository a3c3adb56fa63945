"""Runs the stage ``download`` on small collections, in this process or in one of its own."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from picture import picture

from stages.artifacts import IMAGES, RESUME
from stages.download.config import Params
from stages.download.stage import SKIPPED
from stages.images import ImageShards, read_row_group
from stages.params import parse

ROOT = Path(__file__).parents[1]
#: In one process, where a test can change constants of the modules.
TINY = {"queries": 20, "database": 80, "train": 40, "workers": 1}


def params(name: str, **options: Any) -> Params:
    return parse(Params, {"dataset": {"name": name} | options})


def images(directory: Path = IMAGES) -> list[bytes]:
    """The encoded images of shards, in order."""
    return [data for file, group in ImageShards(directory).row_groups() for _, _, data in read_row_group(file, group)]


def skipped() -> list[list[str]]:
    """The rows of ``reports/skipped.csv``, header included."""
    with open(SKIPPED, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def fill(root: Path, contents: dict[str, bytes]) -> Path:
    """Write files, by name, into the directory `root`."""
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pictures(n: int, classes: int = 2) -> dict[str, bytes]:
    return {f"class {index % classes}/{index:03d}.png": picture(index) for index in range(n)}


def unfinished() -> list[Path]:
    """Directories of work that may be resumed."""
    return list(RESUME.glob("download-*"))


def nothing_left_over() -> bool:
    """Neither unfinished work nor a temporary."""
    return not unfinished() and not list(Path("data").glob(".*"))


def script(name: str, options: dict[str, Any], before: str = "") -> list[str]:
    """A process that runs this stage alone, ended as the command ends it."""
    code = f"""
import sys
import stages.__main__ as program
program.STAGES = ("download",)  # then params.yaml needs nothing else
{before}
if __name__ == "__main__":
    sys.argv = ["stages", "download"]
    program.main()
"""
    Path("params.yaml").write_text(json.dumps({"dataset": {"name": name} | options}))
    Path("program.py").write_text(code)
    return [sys.executable, "program.py"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def run_script(*arguments: Any, **options: Any) -> subprocess.CompletedProcess:
    command = script(*arguments)
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, **options)


def one_line(result: subprocess.CompletedProcess, code: int) -> str:
    """The only line that a failed command says."""
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and not result.stdout
    return result.stderr
