"""Ray, as an engine of stages that encode images: actors, each with a model, share row groups out among them.

The actors read the image shards and the models in the directory of the project, which all machines see at the same
path; what they make comes back and is written here. So the network carries each image once, and its features once.
Ray Data feeds the actors, starts those anew that are lost, and gives their row groups to others.
"""

import logging
import os
import pickle
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.artifacts import replacing
from stages.errors import InputError, OutsideError
from stages.images import RowGroup
from stages.progress import track
from stages.workers import PASSED_ON, cores

#: A row group to the content of the file of what was made of it.
Work = Callable[[RowGroup], bytes]

#: Where Ray is: an address, or "auto" on a machine of the cluster. Without it, Ray runs on this machine alone.
ADDRESS = "RAY_ADDRESS"
#: Bytes of finished row groups that wait on one machine when Ray is started here; those of a cluster, it says itself.
STORE = 256 * 2**20
#: Actors that may be lost over one row group, most likely by it.
ATTEMPTS = 5
#: Blocks of row groups, at most: each is a task to Ray, whose books are in memory.
BLOCKS = 10_000
#: Seconds to wait for the address of a cluster.
TIMEOUT = 10


@dataclass(frozen=True)
class Machines:
    """What the cluster has: cores and GPUs."""

    cores: int
    gpus: int

    def device(self, asked: str) -> str:
        """What ``device`` means on these machines, of which the one that starts the work need not have a GPU."""
        return asked if asked != "auto" else "cuda" if self.gpus else "cpu"


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray says on our outputs what is in its logs, also past Python; only our standard error is still heard."""
    spoken, kept = sys.stderr, os.dup(2)
    spoken.flush()
    with (
        open(os.devnull, "w") as nowhere,
        open(kept, "w", encoding=spoken.encoding, errors=spoken.errors, buffering=1) as heard,
        redirect_stdout(nowhere), redirect_stderr(heard),
    ):  # fmt: skip
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)


@contextmanager
def ray_machines() -> Iterator[Machines]:
    """Ray, connected or started, for the block.

    Raises:
        InputError: it is not installed.
        OutsideError: it does not answer, or broke down in the block.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("engine: ray: install it, `pip install 'conceptbits[ray]'`, or set engine: local") from None
    address = os.environ.get(ADDRESS)
    mine = not ray.is_initialized()
    handler = signal.getsignal(signal.SIGTERM)
    with _quiet():
        try:
            if mine:
                _require_answer(address)
                own = {} if address else {"num_cpus": cores(), "object_store_memory": STORE, "include_dashboard": False}
                ray.init(address, log_to_driver=False, logging_level="ERROR", **own)
                signal.signal(signal.SIGTERM, handler)  # Ray has taken it
            resources = ray.cluster_resources()
            yield Machines(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
        except ConnectionError as error:
            raise _no_answer(address, error) from None
        except ray.exceptions.RayTaskError:
            raise  # of the work itself, and a bug
        except ray.exceptions.RayError as error:
            raise _lost(error) from None
        finally:
            if mine:
                ray.shutdown()


def run_row_groups(
    begin: Callable[..., Work], arguments: tuple[Any, ...], groups: Mapping[Path, RowGroup], machines: Machines,
    cores_each: int, on_gpu: bool, description: str,
) -> None:  # fmt: skip
    """Write the part of each row group, whichever actor makes it.

    Args:
        begin: a function of a module that makes what an actor works with of `arguments`, in the project's directory.
        groups: the row group of each part's file.
        cores_each: cores that an actor has; on_gpu: whether it has a GPU, too.
        description: of the progress bar.

    Raises:
        InputError, OSError, MemoryError: as what `begin` makes does.
        OutsideError: the cluster has no place for an actor.
    """
    if not groups:
        return
    import ray.data

    actors = min(len(groups), machines.gpus if on_gpu else machines.cores // cores_each)
    if not actors:
        lacks = "GPU" if on_gpu else f"machine with {cores_each} cores for workers"
        raise OutsideError(f"engine: ray: the cluster has no {lacks}; add one, or set device: cpu")
    parts = list(groups)
    tasks = [{"number": number, "file": str(groups[part][0]), "group": groups[part][1]}
             for number, part in enumerate(parts)]  # fmt: skip
    # It may be lost as the others may; then it has forgotten what it counted.
    ledger = ray.remote(num_cpus=0, max_restarts=ATTEMPTS, max_task_retries=-1)(_Ledger).remote(ATTEMPTS)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    made = ray.data.from_items(tasks, override_num_blocks=min(len(tasks), BLOCKS)).map_batches(
        _Actor, batch_size=1, fn_constructor_args=(begin, arguments, str(Path.cwd()), ledger),
        num_cpus=cores_each, num_gpus=int(on_gpu), compute=ray.data.ActorPoolStrategy(size=actors),
    )  # fmt: skip
    with closing(iter(made.iter_rows())) as rows:
        for row in track(rows, description, len(tasks)):
            if row["error"]:
                raise pickle.loads(row["error"])
            with replacing(parts[row["number"]]) as temporary:
                temporary.write_bytes(row["content"])


def _require_answer(address: str | None) -> None:
    """Ray itself waits for minutes."""
    if "://" in (address or ""):
        raise InputError(f"{ADDRESS}: {address} is of a client of Ray's; set HOST:PORT of the cluster, or auto on it")
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
        except (OSError, OverflowError) as error:
            raise _no_answer(address, error) from None


def _no_answer(address: str | None, error: BaseException) -> OutsideError:
    return OutsideError(
        f"engine: ray: no answer from {ADDRESS}={address} ({_one_line(error)}); start the cluster, or correct it"
    )


class _Ledger:
    """How often each row group was begun. Ray would begin one that takes every actor down for ever."""

    def __init__(self, attempts: int) -> None:
        self._attempts, self._begun = attempts, Counter()

    def lost(self, number: int) -> int:
        """The row group begins again: how many actors were lost over it, once these are too many; else 0."""
        self._begun[number] += 1
        return self._attempts if self._begun[number] > self._attempts else 0


class _Actor:
    """What Ray makes on a worker: a model that is loaded when the first row group comes."""

    def __init__(self, begin: Callable[..., Work], arguments: tuple[Any, ...], project: str, ledger: Any) -> None:
        self._begin, self._arguments, self._project, self._ledger = begin, arguments, project, ledger
        self._work: Work | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        import ray

        content, problem = b"", b""
        group = Path(batch["file"][0]), int(batch["group"][0])
        try:
            lost = ray.get(self._ledger.lost.remote(int(batch["number"][0])))
            if lost:
                raise OutsideError(
                    f"{group[0]}: {lost} Ray workers were lost over row group {group[1]}; give them more memory and "
                    f"run it again: what is finished is kept"
                )
            if self._work is None:
                os.chdir(self._project)
                self._work = self._begin(*self._arguments)
            content = self._work(group)
        except PASSED_ON as error:  # raised here, it would be a traceback of Ray's
            problem = pickle.dumps(error)
        except ray.exceptions.RayActorError as error:
            problem = pickle.dumps(_lost(error))
        return {"number": batch["number"], "content": [content], "error": [problem]}


def _lost(error: BaseException) -> OutsideError:
    return OutsideError(
        f"engine: ray: lost {type(error).__name__} ({_one_line(error)}); give the workers more memory, and run it "
        f"again: what is finished is kept"
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
