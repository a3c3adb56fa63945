"""Whatever a vocabulary or ``params.yaml`` holds: it is read, or refused in one line; no code is run.

Hypothesis makes the texts; CI tries a few, the nightly profile many.
"""

import copy
import importlib
from typing import Any

import hypothesis.strategies as st
import yaml
from fuzzing import check, clearly, damage, few_or_many, texts
from stage_runner import ROOT

from stages.__main__ import STAGES
from stages.mine.vocabulary import read_vocabulary
from stages.params import parse, read_params_file


@few_or_many(60, 5000)
def test_vocabularies(examples, tmp_path):
    def reads(data: bytes) -> None:
        (tmp_path / "words").write_bytes(data)
        clearly(lambda: read_vocabulary(tmp_path / "words"))

    check(st.one_of(texts.map(str.encode), st.binary(max_size=100), st.binary(max_size=50).map(b"PAR1".__add__)),
          examples, reads)  # fmt: skip


# ---- parameters

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=12), st.just([]), st.just({}),
    st.lists(st.integers(), max_size=2), st.just({"a": {"b": 1}}), st.dates(),
)  # fmt: skip


def places(values: dict[str, Any], before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all keys."""
    found = []
    for key, value in values.items():
        found.append((*before, key))
        if isinstance(value, dict):
            found += places(value, (*before, key))
    return found


@few_or_many(60, 5000)
def test_parameters(examples, tmp_path):
    """Any value at any key gives parameters, or a line that names the file."""
    valid = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    models = [importlib.import_module(f"stages.{stage}.config").Params for stage in STAGES]
    file = tmp_path / "params.yaml"

    def reads(changes: list[tuple[tuple[str, ...], Any, bool]]) -> None:
        values = copy.deepcopy(valid)
        for path, value, removed in changes:
            section = values
            for key in path[:-1]:
                section = section.get(key) if isinstance(section, dict) else None
            if isinstance(section, dict):
                if removed:
                    section.pop(path[-1], None)
                else:
                    section[path[-1]] = value
        for model in models:
            clearly(lambda model=model: parse(model, values, file))

    change = st.tuples(st.sampled_from(places(valid)), scalars, st.booleans())
    check(st.lists(change, min_size=1, max_size=3), examples, reads)


@few_or_many(40, 3000)
def test_parameter_files(examples, tmp_path):
    """Any text, and damaged YAML; no tag makes an object."""
    text = (ROOT / "params.yaml").read_bytes()
    model = importlib.import_module("stages.train.config").Params
    file = tmp_path / "params.yaml"

    def reads(data: bytes) -> None:
        file.write_bytes(data)
        clearly(lambda: parse(model, read_params_file(file), file))
        assert not (tmp_path / "made").exists()

    check(st.one_of(damage(text), texts.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60),
                    st.just(f"!!python/object/apply:pathlib.Path.touch [{tmp_path}/made]".encode())),
          examples, reads)  # fmt: skip
