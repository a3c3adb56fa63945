"""What tests with Hypothesis share: how many examples there are, what is clear, and how bytes are damaged."""

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from stages.errors import InputError, OutsideError

#: What may end a command: one line for the user. Anything else would be a traceback.
CLEAR = (InputError, OutsideError, OSError)

texts = st.one_of(st.text(max_size=200), st.lists(st.text(max_size=20), max_size=8).map("\n".join))


def few_or_many(few: int, many: int) -> pytest.MarkDecorator:
    """Examples in CI, and in the nightly profile."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.nightly)])


def check(strategy: st.SearchStrategy, examples: int, property_: Callable[[Any], None]) -> None:
    """Hypothesis with so many examples, the same ones each time."""

    @settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def holds(value: Any) -> None:
        property_(value)

    holds()


def clearly(action: Callable[[], object]) -> None:
    """It succeeds, or fails in one line."""
    try:
        action()
    except CLEAR as error:
        assert str(error).strip()
        assert "\n" not in str(error), error


def damage(original: bytes) -> st.SearchStrategy[bytes]:
    """`original` with a few bytes other, cut out or put in, or without its end."""
    place = st.integers(0, len(original))
    edit = st.tuples(st.sampled_from(["set", "cut", "insert", "end"]), place, st.binary(min_size=1, max_size=8))

    def edited(edits: list[tuple[str, int, bytes]]) -> bytes:
        data = bytearray(original)
        for how, start, new in edits:
            if how == "set":
                data[start : start + len(new)] = new
            elif how == "cut":
                del data[start : start + 4 * len(new)]
            elif how == "insert":
                data[start:start] = new
            else:
                del data[start:]
        return bytes(data)

    return st.lists(edit, min_size=1, max_size=4).map(edited)
