"""``python -m stages report --timings FILE``: the page of the run with the times of its stages on this machine."""

from pathlib import Path

from stages.codes import Codes
from stages.errors import InputError
from stages.images import Dataset
from stages.report.content import content
from stages.report.inputs import read_run
from stages.report.stage import PAGE, page, write
from stages.timings import Timing, as_table, read_timings


def write_with_times(path: Path) -> None:
    """Write the page to `path`; ``reports/index.html``, which DVC keeps, stays as it is.

    Raises:
        InputError: `path` is that page or no ``.html``, or an artifact is missing, damaged or another run's.
    """
    if path.suffix != ".html" or path.resolve() == PAGE.resolve():
        raise InputError(f"--timings {path}: the page with times is an .html file beside {PAGE}, which has none; "
                         "give it a name like times.html")  # fmt: skip
    found = read_run()
    times = as_table([timing for timing in read_timings() if is_of(timing, found.dataset, found.codes)])
    write(path, page(found, content(found), times))


def is_of(timing: Timing, dataset: Dataset, codes: Codes) -> bool:
    """Whether a stage ran for this data set, method and number of bits."""
    known = {"method": codes.method, "bits": codes.bits}
    return timing.dataset in ("", dataset.digest) and all(
        timing.params.get(key, value) == value for key, value in known.items()
    )
