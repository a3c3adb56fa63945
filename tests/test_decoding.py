"""Items made by worker processes."""

import os

import pytest

from stages.decoding import Items, in_order


class Niceness(Items):
    """The niceness of the process that makes the item."""

    def __len__(self) -> int:
        return 3

    def item(self, index: int) -> int:
        return os.nice(0)


@pytest.mark.parametrize(("workers", "yielding"), [(0, True), (2, False), (2, True)])
def test_workers_leave_the_cores_to_their_reader(workers: int, yielding: bool) -> None:
    before = os.nice(0)
    expected = 19 if workers and yielding else before
    assert list(in_order(Niceness(), workers, yielding=yielding)) == [expected] * 3
    assert os.nice(0) == before
