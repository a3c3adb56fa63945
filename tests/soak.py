"""What grows when things are done over and over: memory, file handles, temporaries, DVC's cache."""

import ctypes
import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml
from dvc_project import Project
from scipy.stats import theilslopes
from stage_runner import leftovers, pipeline

#: Stages all of whose outputs go to DVC's cache: their runs alone are noted in its run-cache.
NOTED = {
    name for name, stage in pipeline()["stages"].items()
    if all(isinstance(out, str) for out in [*stage["outs"], *stage.get("metrics", [])])
}  # fmt: skip
#: Outputs that go to the cache.
CACHED = {out for stage in pipeline()["stages"].values() for out in stage["outs"] if isinstance(out, str)}


def rise(values: Sequence[float]) -> float:
    """By how much the second half of a series rises from its beginning to its end.

    The rise is that of the line of Theil and Sen, the median of the slopes between all pairs of points, which single
    high readings do not move.
    """
    half = values[len(values) // 2 :]
    return float(theilslopes(np.asarray(half, float))[0]) * (len(half) - 1)


# ---- processes


@dataclass(frozen=True)
class Process:
    """A process that runs.

    Attributes:
        own, resident, share: bytes: without pages of files, with them, and with shared pages divided among all. Of the
            files of libraries more or less is resident, as the system sees fit.
        handles: open files, sockets and pipes; packs: open files of git's, apart from these; threads: how many.
        command: its command line.
    """

    number: int
    parent: int
    command: str
    own: int
    resident: int
    share: int
    handles: int
    packs: int
    threads: int


def read_process(number: int) -> Process | None:
    """A process by its number; None where it has ended."""
    place = Path("/proc", str(number))
    try:
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        share = next(line for line in (place / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
        command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        resident, *own = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon", "RssShmem"))
        targets = [_target(handle) for handle in (place / "fd").iterdir()]
    except (OSError, KeyError, StopIteration):
        return None
    parent, threads = int(status["PPid"]), int(status["Threads"])
    packs = sum("/objects/pack/" in target for target in targets)
    return Process(
        number, parent, command, sum(own), resident, int(share.split()[1]) * 1024, len(targets) - packs, packs, threads
    )


def _target(handle: Path) -> str:
    """What a handle is of; "" for one that has been closed meanwhile."""
    try:
        return str(handle.readlink())
    except OSError:
        return ""


class _Allocated(ctypes.Structure):
    """The C library's ``struct mallinfo2``."""

    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def in_use() -> int:
    """Bytes that this process has asked its C library for and not given back.

    Unlike resident memory they do not depend on how the gaps between them are filled.
    """
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Allocated
    told = ask()
    return told.uordblks + told.hblkhd


def with_temporaries_in(directory: Path) -> list[int]:
    """The numbers of all processes that were told to keep their temporary files in `directory`."""
    mark, found = f"TMPDIR={directory}".encode(), []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                environment = Path(entry, "environ").read_bytes()
            except OSError:  # it has ended, or is somebody else's
                continue
            if mark in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


@dataclass
class Peaks:
    """The most that was seen of a queue's worker and what it starts, in bytes and handles.

    Attributes:
        largest: of one stage, without pages of files; together, handles, packs: of all at a time, packs are handles of
            git's packs, apart.
        worker, worker_handles: of the worker at the end.
    """

    largest: int = 0
    together: int = 0
    handles: int = 0
    packs: int = 0
    worker: int = 0
    worker_handles: int = 0


class Watch:
    """Looks several times a second at the worker of DVC's queue and all that it starts; a context manager.

    Args:
        temporary: what ``TMPDIR`` is for these processes.
    """

    PAUSE = 0.2

    def __init__(self, temporary: Path) -> None:
        self._temporary, self._peaks = temporary, Peaks()
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.has_worker = False

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def take(self) -> Peaks:
        """The peaks since the last call."""
        with self._lock:
            taken = self._peaks
            self._peaks = Peaks(worker=taken.worker, worker_handles=taken.worker_handles)
        return taken

    def _run(self) -> None:
        while not self._ended.wait(self.PAUSE):
            read = map(read_process, with_temporaries_in(self._temporary))
            found = {one.number: one for one in read if one}
            workers = [one for one in found.values() if "exp queue-worker" in one.command]
            self.has_worker = bool(workers)
            if workers:
                self._note(workers[0], list(descendants(workers[0].number, found)))

    def _note(self, worker: Process, started: list[Process]) -> None:
        with self._lock:
            peaks = self._peaks
            peaks.worker, peaks.worker_handles = worker.resident, worker.handles
            peaks.largest = max([peaks.largest, *(one.own for one in started if "-m stages " in one.command)])
            peaks.together = max(peaks.together, sum(one.share for one in [worker, *started]))
            peaks.handles = max(peaks.handles, sum(one.handles for one in [worker, *started]))
            peaks.packs = max(peaks.packs, sum(one.packs for one in [worker, *started]))


def descendants(number: int, processes: dict[int, Process]) -> Iterable[Process]:
    """What a process has started, and what that has."""
    for one in processes.values():
        if one.parent == number:
            yield one
            yield from descendants(one.number, processes)


# ---- DVC's cache


def sizes(directory: Path) -> dict[str, int]:
    """The bytes of each file below `directory`."""
    found = {}
    for place, _, names in os.walk(directory):
        for name in names:
            file = Path(place, name)
            try:
                found[file.relative_to(directory).as_posix()] = file.stat().st_size
            except FileNotFoundError:  # a temporary, meanwhile
                continue
    return found


class Cache:
    """What lies in the cache of a project, and what of it the lock files of some revisions account for."""

    def __init__(self, project: Project) -> None:
        self.project, self.directory = project, project.directory / ".dvc" / "cache"

    def files(self) -> dict[str, int]:
        """The bytes of each cached file, by its digest."""
        return {name.replace("/", ""): size for name, size in sizes(self.directory / "files" / "md5").items()}

    def runs(self) -> dict[str, int]:
        """The bytes of each entry of the run-cache."""
        return sizes(self.directory / "runs")

    def lock(self, revision: str) -> dict[str, Any]:
        """The stages in ``dvc.lock`` of a revision."""
        return yaml.safe_load(self.project.git("show", f"{revision}:dvc.lock"))["stages"]

    def accounted(self, locks: Iterable[dict[str, Any]]) -> set[str]:
        """Digests of all that the artifacts in these lock files consist of, which is in the cache, and of that size."""
        found: set[str] = set()
        for out in (out for lock in locks for stage in lock.values() for out in stage["outs"]):
            if out["path"] in CACHED and out["md5"] not in found:
                found.add(out["md5"])
                files = [out["md5"]]
                if out["md5"].endswith(".dir"):
                    files = [file["md5"] for file in json.loads(self._file(out["md5"]).read_text(encoding="utf-8"))]
                assert sum(self._file(md5).stat().st_size for md5 in files) == out["size"], out
                found.update(files)
        return found

    def _file(self, md5: str) -> Path:
        return self.directory / "files" / "md5" / md5[:2] / md5[2:]


def noted_runs(locks: Iterable[dict[str, Any]]) -> set[str]:
    """The runs of stages in these lock files that the run-cache has an entry for."""
    return {json.dumps(lock[name], sort_keys=True) for lock in locks for name in lock if name in NOTED}


# ---- a queue of experiments


@dataclass(frozen=True)
class Row:
    """What there was when an experiment had ended.

    Attributes:
        seconds: since the one before; peaks: meanwhile.
        disk: files and bytes by place, see :meth:`Queue.places`; without the copy that an experiment runs in.
    """

    experiment: str
    seconds: float
    peaks: Peaks
    disk: dict[str, tuple[int, int]]


class Queue:
    """Runs a queue of experiments and notes what each leaves.

    Args:
        temporary: the directory of temporary files of all processes.
    """

    #: Seconds that an experiment may take, and a worker may be missing.
    PATIENCE, MISSING = 300, 15
    #: Experiments after which git joins its packs, as docs/reliability.md says.
    PACKS = 50

    def __init__(self, project: Project, temporary: Path) -> None:
        self.project, self.cache, self.temporary = project, Cache(project), temporary
        self.restarts = 0
        temporary.mkdir()
        project.environment |= {"TMPDIR": str(temporary)}

    def experiments(self) -> dict[str, str]:
        """Names and revisions of the experiments that have ended well."""
        said = self.project.git("for-each-ref", "--format=%(refname) %(objectname)", "refs/exps")
        pairs = (line.split() for line in said.splitlines())
        return {name.split("/")[-1]: revision for name, revision in pairs if len(name.split("/")) == 5}

    def run(self, options: Sequence[str], seconds: float) -> list[Row]:
        """Queue experiments and run them, until all are done, or for so many seconds; what is left is taken out then.

        Args:
            options: of ``dvc exp run --queue``.
        """
        before = set(self.experiments())
        expected = self.project.dvc("exp", "run", "--queue", *options).count("Queued experiment")
        assert expected
        try:
            with Watch(self.temporary) as watch:
                self.project.start_queue()
                return self._wait(watch, before, expected, seconds)
        finally:
            self.project.dvc("queue", "stop", "--kill")
            self._wait_for_all()

    def _wait(self, watch: Watch, done: set[str], expected: int, seconds: float) -> list[Row]:
        rows, stopping = [], False
        started = last = seen = time.monotonic()
        while len(rows) < expected:
            time.sleep(0.5)
            now = time.monotonic()
            assert now - last < self.PATIENCE, self.project.dvc("queue", "status")
            for name in sorted(set(self.experiments()) - done):
                done.add(name)
                rows.append(self.row(name, now - last, watch.take()))
                last = now
                if len(rows) % self.PACKS == 0:
                    self.project.git("gc", "--quiet")
            if watch.has_worker:
                seen = now
            if now - started > seconds and not stopping:
                self.project.dvc("queue", "stop")
                stopping = True
            elif now - seen > self.MISSING:
                if stopping:
                    break
                self.restarts += 1  # DVC's worker ends now and then with an error of its own
                self.project.start_queue()
                seen = now
        return rows

    def row(self, name: str = "", seconds: float = 0.0, peaks: Peaks | None = None) -> Row:
        """What there is now."""
        disk = {}
        for place, path in self.places().items():
            files = [size for name, size in sizes(path).items() if not name.startswith("exps/tmp")]
            disk[place] = len(files), sum(files)
        return Row(name, seconds, peaks or Peaks(), disk)

    def places(self) -> dict[str, Path]:
        """Where something is left, as it is called where nobody has set another place."""
        root = self.project.directory
        own = (".dvc/cache/files", ".dvc/cache/runs", ".git", ".dvc/tmp")
        return {place: root / place for place in own} | {
            "/var/tmp/dvc": Path(self.project.environment["DVC_SITE_CACHE_DIR"]), "/tmp": self.temporary,
        }  # fmt: skip

    def temporaries(self) -> list[str]:
        """Temporary files, unfinished work and copies of the project, those of an experiment that runs among them."""
        copies = (self.project.directory / ".dvc/tmp/exps").glob("tmp*")
        return [*sorted(sizes(self.temporary)), *leftovers(self.project.directory), *map(str, copies)]

    def processes(self) -> list[str]:
        """The command lines of what still runs."""
        found = map(read_process, with_temporaries_in(self.temporary))
        return [one.command for one in found if one]

    def _wait_for_all(self) -> None:
        deadline = time.monotonic() + 60
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
