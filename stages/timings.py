"""``reports/timings/NAME.json``: how long a stage took when it last ran on this machine, and how much memory.

A record and no artifact: it differs from run to run, so DVC does not know it and git ignores it. A stage that DVC
restored from its cache has the record of an earlier run, or none.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.artifacts import DATASET, PRODUCER, read_json, write_json
from stages.errors import InputError

TIMINGS = Path("reports/timings")


@dataclass(frozen=True)
class Timing:
    """One run of a stage, its imports included.

    Attributes:
        seconds: that went by; processor_seconds: of all cores, of the stage and the processes that it started.
        peak_bytes: most resident memory of the stage; worker_peak_bytes: of the largest process that it started.
        dataset: digest of the data set there was afterwards, "" for none; params: the stage's keys of ``params.yaml``.
    """

    stage: str
    seconds: float
    processor_seconds: float
    peak_bytes: int
    worker_peak_bytes: int
    dataset: str
    params: Mapping[str, Any]


@contextmanager
def timed(stage: str, params: Mapping[str, Any]) -> Iterator[None]:
    """Record the block, which runs `stage`, unless it fails; a record that cannot be written is left out."""
    start, before = time.perf_counter(), _processor_seconds()
    yield
    seconds, processor = time.perf_counter() - start, _processor_seconds() - before
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = [resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    dataset = ""
    with suppress(InputError, OSError):
        dataset = str(read_json(DATASET).get("digest", ""))
    with suppress(OSError):  # the stage has done its work
        timing = Timing(stage, round(seconds, 3), round(processor, 3), *peaks, dataset, params)
        write_json(TIMINGS / f"{stage}.json", asdict(timing))


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def read_timings() -> list[Timing]:
    """What is recorded, in the order in which the stages run.

    Raises:
        InputError: a record is damaged.
    """
    order = list(dict.fromkeys(PRODUCER.values()))
    found = []
    # Names with a point in front are temporaries of a run that was killed.
    for path in TIMINGS.glob("[!.]*.json"):
        try:
            timing = Timing(**json.loads(path.read_text(encoding="utf-8")))
            numbers = (timing.seconds, timing.processor_seconds, timing.peak_bytes, timing.worker_peak_bytes)
            if not all(isinstance(number, int | float) for number in numbers) or timing.stage != path.stem:
                raise ValueError
        except (ValueError, TypeError):
            raise InputError(f"{path}: no record of a stage's time; delete it") from None
        found.append(timing)
    return sorted(found, key=lambda t: (order.index(t.stage) if t.stage in order else len(order), t.stage))


def as_table(timings: Sequence[Timing]) -> list[list[str]]:
    """What a reader sees of `timings`: a header, and a row each."""
    header = ["stage", "time", "of all cores", "peak memory", "of its largest worker"]
    return [header] + [
        [timing.stage, _duration(timing.seconds), _duration(timing.processor_seconds), _mebibytes(timing.peak_bytes),
         _mebibytes(timing.worker_peak_bytes)] for timing in timings
    ]  # fmt: skip


def show() -> None:
    """Print what is recorded.

    Raises:
        InputError: nothing is, or a record is damaged.
    """
    from rich.console import Console
    from rich.table import Table

    timings = read_timings()
    if not timings:
        raise InputError(f"{TIMINGS}: no stage has run here, or all that did came from a cache; run one, for instance "
                         "`python -m stages report`")  # fmt: skip
    header, *rows = as_table(timings)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB" if size else ""


def _duration(seconds: float) -> str:
    """For people.

    >>> _duration(7.24), _duration(61.4), _duration(3725)
    ('7.2 s', '1 min 01 s', '1 h 02 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
