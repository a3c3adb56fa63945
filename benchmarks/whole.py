"""The whole pipeline on the embedded data set in a fresh clone, the second run that has nothing to do, and the help.

    python benchmarks/whole.py

Times are of whole processes, from start to end; memory is that of all processes at once.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import REPEATS, machine, peak_memory, report, shown, spread, take_turns

ROOT = Path(__file__).parents[1]
REPRO = [sys.executable, "-m", "dvc", "repro"]


def reproduce(place: Path) -> tuple[float, float]:
    """Clone into `place` and run everything: seconds, and peak memory in MB."""
    subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
    start = time.perf_counter()
    peak = peak_memory(REPRO, place, {"PYTHONPATH": str(place)})
    return time.perf_counter() - start, peak


def quietly(command: list[str], place: Path) -> None:
    subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)


def measure(repeats: int) -> dict[str, Any]:
    """Seconds, as [median, least, greatest], and memory in MB."""
    whole = []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(repeats):
            place = Path(directory) / str(number)
            whole.append(reproduce(place))
        times = take_turns({
            "dvc repro, nothing to do": lambda: quietly(REPRO, place),
            "python -m stages --help": lambda: quietly([sys.executable, "-m", "stages", "--help"], place),
        }, repeats)  # fmt: skip
    seconds = {"dvc repro, everything": spread([one for one, _ in whole])}
    seconds |= {name: spread(found) for name, found in times.items()}
    return {"seconds": seconds, "memory_mb": spread([peak for _, peak in whole])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    found = measure(arguments.repeats)
    lines = ["| the whole, on `scenes` | |", "|---|---|"]
    lines += [f"| {name} | {shown(seconds)} s |" for name, seconds in found["seconds"].items()]
    lines.append(f"| peak memory of all processes | {shown(found['memory_mb'], 0)} MB |")
    report("whole", machine("dvc", "torch") | {"repeats": arguments.repeats} | found, "\n".join(lines))


if __name__ == "__main__":
    main()
