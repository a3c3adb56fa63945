"""What the benchmarks share: kinds of work that take turns, their ratios, the memory of a command, and the report.

Claims are ratios of kinds of work in one run: all take turns, so that what else the machine does meets all of them.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"

#: Repetitions after the warm-up.
REPEATS = 5


def take_turns(
    kinds: Mapping[str, Callable[[], object]], repeats: int = REPEATS,
    before: Mapping[str, Callable[[], object]] = MappingProxyType({}),
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of each repetition of each kind of work, after one round that warms up.

    What is `before` a kind is done before each time, and not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for repeat in range(repeats + 1):
        for name, work in kinds.items():
            if name in before:
                before[name]()
            start = time.perf_counter()
            work()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return times


def ratios(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """How often `other` goes into `one`, repetition by repetition: median, least, greatest."""
    return spread([a / b for a, b in zip(one, other, strict=True)])


def spread(values: Sequence[float]) -> list[float]:
    """Median, least and greatest value."""
    return [round(f(values), 4) for f in (statistics.median, min, max)]


def shown(found: Sequence[float], digits: int = 2) -> str:
    """A spread, as a cell of a table."""
    middle, least, greatest = (f"{value:.{digits}f}" for value in found)
    return f"**{middle}** ({least}-{greatest})"


def peak_memory(command: Sequence[str], directory: Path, environment: Mapping[str, str] | None = None) -> float:
    """Peak in MB of what a command and its children hold at once (proportional set size).

    Raises:
        RuntimeError: the command failed.
    """
    process = psutil.Popen(command, cwd=directory, env=os.environ | (environment or {}), stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, proportional_set_size(process))
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(f"{command} failed")
    return peak / 1e6


def proportional_set_size(process: psutil.Popen) -> int:
    """Bytes of a process and its descendants, shared pages divided among their users."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):  # it has just ended
            total += one.memory_full_info().pss
    return total


def machine(*libraries: str) -> dict[str, Any]:
    """Cores and versions, for the head of a report."""
    return {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
            "versions": {name: version(name) for name in libraries}}  # fmt: skip


def report(name: str, result: Mapping[str, Any], table: str) -> None:
    """Write ``results/NAME.json`` and ``results/NAME.md``, and print the table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(table + "\n", encoding="utf-8")
    print(table)
