"""Runs the command line in forked children of one process that has imported everything.

A trial costs a fork instead of seconds of imports. Started by :class:`stage_runner.StageRunner`; one JSON object a line
on standard input is a request (:class:`stage_runner.Trial`), one on standard output the answer.
"""

import faulthandler
import importlib
import json
import mmap
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from stages import __main__ as program

#: Calls that go to the disk from within a library in C, which no audit event tells of.
WRITES = (
    ("h5py", "Group.__setitem__"), ("h5py", "Dataset.__setitem__"), ("h5py", "AttributeManager.__setitem__"),
    ("h5py", "File.close"), ("pyarrow.parquet", "ParquetWriter.write_table"),
    ("pyarrow.parquet", "ParquetWriter.close"), ("stages.artifacts", "_PatientFile.write"), ("os", "fsync"),
)  # fmt: skip

#: Audit events that change the disk; of those that open a file only those for writing.
CHANGES = frozenset(f"os.{name}" for name in ("rename", "remove", "rmdir", "mkdir", "chmod", "truncate", "symlink"))


def import_everything() -> None:
    """What the stages import, at the top or when they first need it."""
    for stage in program.STAGES:
        importlib.import_module(f"stages.{stage}.stage")
    for name in ("dvc.api", "matplotlib.backends.backend_agg", "matplotlib.font_manager"):
        importlib.import_module(name)


def wrap(module: str, name: str, before: Any) -> None:
    """Call `before` whenever the function `name` ("Class.method" too) of `module` is called."""
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    inner = getattr(owner, last)

    def outer(*arguments: Any, **options: Any) -> Any:
        before()
        return inner(*arguments, **options)

    setattr(owner, last, outer)


class Events:
    """Counts the calls that change something below the working directory, and pulls the plug just before one."""

    def __init__(self, counter: mmap.mmap, kill_at: int | None) -> None:
        self.counter, self.kill_at, self.root = counter, kill_at, Path.cwd()

    def __call__(self) -> None:
        number = int.from_bytes(self.counter[:8], "little") + 1
        self.counter[:8] = number.to_bytes(8, "little")
        if number == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple) -> None:
        """The hook for :func:`sys.addaudithook`."""
        if event == "open":
            path, mode, flags = arguments
            if not (flags & (os.O_WRONLY | os.O_RDWR) if isinstance(flags, int) else set(mode or "") & set("wax+")):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, str | bytes | os.PathLike) and self._is_below(os.fsdecode(path)):
            self()

    def _is_below(self, path: str) -> bool:
        return Path(path).absolute().is_relative_to(self.root)


def count_calls(place: str, counter: mmap.mmap) -> None:
    """Count the calls of the function at ``module:name`` in the second half of `counter`."""

    def count() -> None:
        counter[8:] = (int.from_bytes(counter[8:], "little") + 1).to_bytes(8, "little")

    wrap(*place.split(":"), count)


def become(trial: dict[str, Any], counter: mmap.mmap) -> NoReturn:
    """Turn this (forked) process into ``python -m stages ...`` of a trial."""
    os.chdir(trial["cwd"])
    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(Path(trial["output"], name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    faulthandler.enable()
    if trial["count"]:
        count_calls(trial["count"], counter)
    if trial["events"]:
        events = Events(counter, trial["kill_at_event"])
        for module, name in WRITES:
            wrap(module, name, events)
        sys.addaudithook(events.audit)
    limit = trial["kill_at_size"] or trial["max_file_size"]
    if limit:
        # A write beyond the limit fails (as on a full disk), or is the last thing that the process does.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if trial["kill_at_size"] else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if trial["kill_after"]:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # nobody catches it: like SIGKILL
        signal.setitimer(signal.ITIMER_REAL, trial["kill_after"])
    sys.argv = ["stages", *trial["arguments"]]
    code = 0
    try:
        program.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to take down all that was imported would take longer than most stages


def serve() -> None:
    import_everything()
    counter = mmap.mmap(-1, 16)
    answers = os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        counter[:] = bytes(16)
        child = os.fork()
        if child == 0:
            become(json.loads(line), counter)
        _, status, usage = os.wait4(child, 0)
        print(json.dumps({
            "returncode": os.waitstatus_to_exitcode(status), "events": int.from_bytes(counter[:8], "little"),
            "calls": int.from_bytes(counter[8:], "little"), "peak_kib": usage.ru_maxrss,
        }), file=answers, flush=True)  # fmt: skip


if __name__ == "__main__":
    serve()
