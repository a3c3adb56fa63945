"""Several ranks on this machine, forked from one process that has imported everything; Gloo talks by the loopback."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from stages import __main__ as program

ROOT = Path(__file__).parents[1]

#: Seconds until ranks that do not end are given up.
PATIENCE = 100


@dataclass(frozen=True)
class Ended:
    """How a rank ended; a negative exit code is a signal."""

    exitcode: int
    stderr: str


def launch(
    directories: Sequence[Path], work: Callable[..., None], *arguments: Any, agent: bool = False
) -> list[Ended]:
    """Run ``work(*arguments)``, a function of a module, in a rank for each of the directories, as torchrun would.

    Each one is that of a machine; ranks with the same one are on the same machine.

    Args:
        agent: whether all are terminated as soon as one has failed, as by the agent of torchrun on their machine.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stages.__main__", "stages.train.stage", "torch._dynamo", "training_run"])
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # kept by the agent of torchrun
    before, os.environ["PYTHONPATH"] = os.environ.get("PYTHONPATH"), f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    ranks = []
    try:
        for rank, directory in enumerate(directories):
            variables = {
                "RANK": rank, "WORLD_SIZE": len(directories), "LOCAL_RANK": directories[:rank].count(directory),
                "LOCAL_WORLD_SIZE": directories.count(directory), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port,
                "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0, "GLOO_SOCKET_IFNAME": "lo",
            }  # fmt: skip
            ranks.append(context.Process(target=_become, args=(variables, str(directory), work, arguments)))
            ranks[-1].start()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    deadline = time.monotonic() + PATIENCE
    while agent and time.monotonic() < deadline and any(process.is_alive() for process in ranks):
        if any(process.exitcode for process in ranks):
            for process in ranks:
                process.terminate()
            break
        time.sleep(0.1)  # as torchrun looks
    for process in ranks:
        process.join(max(0, deadline - time.monotonic()))
    for process in ranks:
        process.kill()
        process.join()
    written = [directory / f"stderr-{rank}" for rank, directory in enumerate(directories)]
    found = [Ended(process.exitcode, file.read_text()) for process, file in zip(ranks, written, strict=True)]
    for file in written:
        file.unlink()
    return found


def _become(variables: dict[str, Any], directory: str, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.chdir(directory)
    file = os.open(f"stderr-{variables['RANK']}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 2)
    sys.stderr = os.fdopen(file, "w", buffering=1)
    torch.set_num_threads(1)
    work(*arguments)


def command(stage: str, before: Callable[[], None] | None = None) -> None:
    """``python -m stages STAGE`` in a rank; `before` prepares the process for it."""
    if before:
        before()
    sys.argv = ["stages", stage]
    program.main()
