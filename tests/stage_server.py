"""Runs the command line in forked children of one process that has imported everything.

A trial costs a fork instead of seconds of imports. Started by :class:`stage_runner.StageRunner`; one JSON list a line
on standard input has the trials (:class:`stage_runner.Trial`) that begin together, one on standard output their ends.
"""

import ctypes
import faulthandler
import importlib
import json
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
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
    # The last two are imported by CLIP, and by the first step of an optimizer: 1,400 modules.
    for name in ("dvc.api", "matplotlib.backends.backend_agg", "matplotlib.font_manager", "PIL.Image", "open_clip",
                 "torch._dynamo"):  # fmt: skip
        importlib.import_module(name)
    sys.modules["PIL.Image"].init()


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
    """Counts the calls that change something below the working directory; something happens just before one."""

    def __init__(self, counter: mmap.mmap, at: int | None, happens: Callable[[], None]) -> None:
        self.counter, self.at, self.happens, self.root = counter, at, happens, Path.cwd()

    def __call__(self) -> None:
        number = int.from_bytes(self.counter[:8], "little") + 1
        self.counter[:8] = number.to_bytes(8, "little")
        if number == self.at:
            self.happens()

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


def event(what: str) -> Callable[[], None]:
    """What a trial lets happen (:attr:`stage_runner.Trial.then`)."""
    if what == "params":
        return lambda: os.replace("params.next.yaml", "params.yaml")
    if what.startswith("clock"):
        seconds, clock, nanoseconds = int(what.removeprefix("clock")), time.time, time.time_ns

        def jump() -> None:
            time.time = lambda: clock() + seconds
            time.time_ns = lambda: nanoseconds() + seconds * 10**9

        return jump
    return lambda: signal.raise_signal(signal.Signals[what])


def lose_privileges() -> None:
    """From now on the permissions of files hold for root, too."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, held)
    for kind in range(3):  # effective, permitted, inheritable
        held[kind] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, held):
        raise OSError(ctypes.get_errno(), "capset")


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
        events = Events(counter, trial["at_event"], event(trial["then"]))
        for module, name in WRITES:
            wrap(module, name, events)
        sys.addaudithook(events.audit)
    limit = trial["kill_at_size"] or trial["max_file_size"]
    if limit:
        # A write beyond the limit fails (as on a full disk), or is the last thing that the process does.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if trial["kill_at_size"] else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if trial["unprivileged"]:
        lose_privileges()
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


def started(trial: dict[str, Any]) -> tuple[int, mmap.mmap]:
    """The process of a trial, and its counters."""
    counter = mmap.mmap(-1, 16)
    child = os.fork()
    if child == 0:
        become(trial, counter)
    return child, counter


def ended(child: int, counter: mmap.mmap) -> dict[str, int]:
    """What came of the trial."""
    _, status, usage = os.wait4(child, 0)
    return {
        "returncode": os.waitstatus_to_exitcode(status), "events": int.from_bytes(counter[:8], "little"),
        "calls": int.from_bytes(counter[8:], "little"), "peak_kib": usage.ru_maxrss,
    }  # fmt: skip


def serve() -> None:
    import_everything()
    answers = os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        children = [started(trial) for trial in json.loads(line)]
        print(json.dumps([ended(*child) for child in children]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
