"""Worker processes: results, errors, kills, and nothing that stays behind."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.errors import InputError, OutsideError
from stages.workers import cores, run_workers, shared_out


def squares(numbers: list[int]) -> Iterator[tuple[int, int]]:
    for number in numbers:
        yield number**2, os.getpid()


def large(sizes: list[int]) -> Iterator[bytes]:
    yield from (bytes(size) for size in sizes)


def forever(_: int) -> Iterator[int]:
    while True:
        time.sleep(0.01)
        yield os.getpid()


def fail(number: int) -> Iterator[int]:
    yield number
    if number == 3:
        raise ArithmeticError("three")


def die(number: int) -> Iterator[int]:
    yield number
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int) -> Iterator[int]:
    yield number
    if number == 3:
        raise InputError("three is bad; take another")


def fill_the_disk(number: int) -> Iterator[int]:
    yield number
    raise OSError(errno.ENOSPC, "No space left on device", f"file {number}")


@pytest.mark.parametrize(
    ("n", "workers", "expected"),
    [(0, 2, [0]), (1, 2, [1]), (2, 2, [2]), (3, 2, [1, 2]), (7, 2, [3, 4]), (9, 4, [2, 2, 2, 3]), (5, 9, [1, 2, 2]),
     (8, 1, [8])],
)  # fmt: skip
def test_shares(n, workers, expected):
    shares = shared_out(range(n), workers)
    assert [len(share) for share in shares] == expected
    assert [item for share in shares for item in share] == list(range(n))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_all_results_come(workers):
    shares = shared_out(list(range(25)), workers)
    results = list(run_workers(squares, shares, "squares"))
    assert sorted(square for square, _ in results) == [number**2 for number in range(25)]
    assert len({process for _, process in results}) == workers
    assert (os.getpid() in {process for _, process in results}) == (workers == 1)
    for share in shares:  # those of one process come in their order
        ours = [square for square, _ in results if square in {number**2 for number in share}]
        assert ours == [number**2 for number in share]


def test_large_results():
    sizes = sorted(len(result) for result in run_workers(large, [[1_000_000, 2_000_000], [3_000_000]], "large"))
    assert sizes == [1_000_000, 2_000_000, 3_000_000]


def test_workers_do_not_run_the_main_script(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from stages.workers import run_workers\n"
        "print('main', sorted(run_workers(list, [[1, 2], [3]], 'numbers')), sys.modules['__main__'].__file__)\n"
    )
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    printed = subprocess.run(
        [sys.executable, script], env=os.environ | path, capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert printed == f"main [1, 2, 3] {script}\n"


def test_failure_in_a_worker_is_told(capfd):
    with pytest.raises(RuntimeError, match="numbers failed in a worker process"):
        list(run_workers(fail, [1, 2, 3], "numbers"))
    assert "ArithmeticError: three" in capfd.readouterr().err


def test_kill_of_a_worker_is_told():
    with pytest.raises(OutsideError, match="numbers: a worker process was killed from outside"):
        list(run_workers(die, [1, 2, 3], "numbers"))


def test_errors_of_the_user_and_of_the_disk_are_passed_on(capfd):
    with pytest.raises(InputError, match=r"^three is bad; take another$"):
        list(run_workers(refuse, [1, 2, 3], "numbers"))
    with pytest.raises(OSError) as caught:
        list(run_workers(fill_the_disk, [1, 2], "numbers"))
    assert caught.value.errno == errno.ENOSPC and caught.value.filename.startswith("file")
    assert capfd.readouterr().err == ""


def test_workers_end_when_the_reader_stops():
    results = run_workers(forever, [1, 2], "numbers")
    processes: set[int] = set()
    while len(processes) < 2:
        processes.add(next(results))
    results.close()
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_cores():
    assert 1 <= cores() <= (os.cpu_count() or 1)
