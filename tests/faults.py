"""The faults that tests inject: CI has a sample of each kind, the nightly profile all; and what came of each."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import pytest

#: Kinds of faults, and what is done to a stage.
KINDS = {
    "kill before a write": "SIGKILL just before a change of the disk, each one in turn",
    "kill in a write": "SIGKILL in the write that goes beyond a random length",
    "kill at random": "SIGKILL after a random time",
    "SIGTERM": "just before a change of the disk",
    "SIGINT": "just before a change of the disk",
    "file too large": "no file may grow beyond a limit (RLIMIT_FSIZE)",
    "disk full": "no byte is left in the file system",
    "disk read-only": "the file system is remounted read-only",
    "no permission to write": "the directory of an output may not be written",
    "no permission to read": "an input may not be read",
    "read error": "EIO from the file system in the second half of an input",
    "input missing": "an input is not there",
    "input empty": "an input has no byte left",
    "input cut": "an input ends in its middle",
    "input noise": "an input holds random bytes",
    "input overwritten": "64 bytes in the middle of an input are random",
    "bit flipped": "one random bit of an input is the other one",
    "number out of range": "one number of an input is NaN, infinite, or as large as numbers get",
    "input of another kind": "a file of the right format with other content",
    "input of another run": "an input made from another data set or with another model",
    "two at once": "the same stage twice at the same time",
    "parameter changed": "params.yaml changes in the middle",
    "Ray worker killed": "SIGKILL to a process of Ray that works for a stage, at a random moment",
    "rank killed": "SIGKILL to one of two ranks that train, at a random moment",
    "clock jumps": "the clock goes a year back or ten years ahead in the middle",
}

#: What may come of a fault; anything else fails the test.
OUTCOMES = {
    "died": "the process ended without a word, as a killed one does",
    "stopped": "one line that says that the same command resumes",
    "refused": "one line that names the cause and the cure",
    "finished": "the bytes of an undisturbed run, in spite of it",
    "unnoticed": "whole outputs of a damaged input: its format has no checksum there; `python -m stages verify` tells",
}


@dataclass(frozen=True)
class Fault:
    """A fault that a test injects; nightly: CI leaves it out."""

    kind: str
    stage: str
    nightly: bool


#: All, in the order in which the modules of the tests were imported.
FAULTS: list[Fault] = []


def faults(kind: str, cases: Iterable[tuple[Any, ...]], ci: int) -> list[Any]:
    """Parameters of a test that injects one fault of `kind` a case.

    Args:
        cases: begin with the stage, and come in the order of the stages.
        ci: how many of them CI has: of different stages, and of other ones than of the next kind.
    """
    assert kind in KINDS
    cases = list(cases)
    numbers: dict[str, list[int]] = {}
    for number, case in enumerate(cases):
        numbers.setdefault(case[0], []).append(number)
    stages, turn = list(numbers), crc32(kind.encode())
    chosen = set(range(len(cases))) if ci >= len(cases) else set()
    for count in range(ci):
        of_stage = numbers[stages[(turn + count * len(stages) // ci) % len(stages)]]
        chosen.add(of_stage[(turn + count) % len(of_stage)])
    marked = []
    for number, case in enumerate(cases):
        fault = Fault(kind, case[0], number not in chosen)
        FAULTS.append(fault)
        marks = [pytest.mark.fault(fault), *([pytest.mark.nightly] if fault.nightly else [])]
        marked.append(pytest.param(*case, marks=marks, id="-".join(map(str, case))))
    return marked
