"""``params.yaml`` as typed objects: what is refused, and in which words."""

import copy
import importlib

import pytest
import yaml
from pydantic import Field, ValidationError
from stage_runner import ROOT

from stages.__main__ import STAGES
from stages.errors import InputError
from stages.params import Bits, Frozen, Seed, merged, parse, read_params_file, unknown_key

VALUES = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


class Inner(Frozen):
    """A section in a section."""

    gamma: float = Field(gt=0)


class Section(Frozen):
    """A section."""

    lr: float
    inner: Inner


class Model(Frozen):
    """What a stage reads."""

    bits: Bits
    seed: Seed
    train: Section


GOOD = {"bits": 32, "seed": 0, "train": {"lr": 0.1, "inner": {"gamma": 0.2}}, "of another stage": 1}


def problem(changes):
    with pytest.raises(InputError) as caught:
        parse(Model, merged(GOOD, changes))
    message = str(caught.value)
    assert message.startswith("params.yaml: ") and "\n" not in message
    return message.removeprefix("params.yaml: ")


def test_good_values():
    params = parse(Model, GOOD)
    assert params.bits == 32 and params.train.inner.gamma == 0.2
    assert parse(Model, merged(GOOD, {"train": {"lr": 1}})).train.lr == 1.0
    with pytest.raises(ValidationError):
        params.bits = 64


@pytest.mark.parametrize("stage", STAGES)
def test_every_config_takes_the_file_of_the_project(stage):
    config = importlib.import_module(f"stages.{stage}.config").Params
    assert parse(config, VALUES).model_dump(mode="json").items() <= copy.deepcopy(VALUES).items()


@pytest.mark.parametrize("bits", [0, -8, 12, "32", 8.5, 32.0, True, None, [32]])
def test_bits(bits):
    words = problem({"bits": bits})
    assert words.startswith(f"bits: {bits!r} is not allowed: ")
    if type(bits) is int:
        assert words.endswith("must be a positive multiple of 8")
    else:
        assert "integer" in words


@pytest.mark.parametrize(("changes", "words"), [
    ({"seed": -1}, "seed: -1 is not allowed: input should be greater than or equal to 0"),
    ({"seed": 2**32}, "seed: 4294967296 is not allowed: input should be less than 4294967296"),
    ({"train": {"lr": "1e-3"}}, "train.lr: '1e-3' is not allowed: input should be a valid number; YAML takes 1e-3 for "
                                "text, write it with a point, like 1.0e-3"),
    ({"train": {"lr": "fast"}}, "train.lr: 'fast' is not allowed: input should be a valid number"),
    ({"train": {"lr": float("nan")}}, "train.lr: nan is not allowed: input should be a finite number"),
    ({"train": {"lr": float("inf")}}, "train.lr: inf is not allowed: input should be a finite number"),
    ({"train": {"inner": {"gamma": 0}}}, "train.inner.gamma: 0 is not allowed: input should be greater than 0"),
    ({"train": {"epochs": 1}}, "unknown key 'train.epochs'; known ones are inner, lr"),
    ({"train": {"inner": {"gama": 1}}}, "unknown key 'train.inner.gama'; did you mean 'gamma'?"),
    ({"train": None}, "train: must be a section with keys of its own, is None"),
    ({"train": 3}, "train: must be a section with keys of its own, is 3"),
    ({"train": {"inner": [1]}}, "train.inner: must be a section with keys of its own, is [1]"),
])  # fmt: skip
def test_bad_values(changes, words):
    assert problem(changes) == words


def test_missing_keys():
    with pytest.raises(InputError, match=r"params.yaml: key 'bits' is missing; add it"):
        parse(Model, {})
    with pytest.raises(InputError, match=r"params.yaml: key 'train.inner' is missing; add it"):
        parse(Model, GOOD | {"train": {"lr": 1.0}})


def test_rule_about_a_section_does_not_print_it_all():
    from stages.components.config import Params

    with pytest.raises(InputError) as caught:
        parse(Params, merged(VALUES, {"components": {"coarse": 200}}))
    assert str(caught.value) == "params.yaml: components: coarse (200) must be at most fine (100)"


def test_unknown_key_at_the_top():
    assert unknown_key("methd", ["method", "bits"]) == "unknown key 'methd'; did you mean 'method'?"
    assert unknown_key("x", ["method", "bits"]) == "unknown key 'x'; known ones are bits, method"


@pytest.mark.parametrize(("content", "words"), [
    (b"bits: [", "not valid YAML (while parsing a flow"), (b"bits: 1\n bits: 2", "not valid YAML (mapping values"),
    (b"\xff\xfe\x00", "not valid YAML"), (b"", "must be a mapping of parameters, is NoneType"),
    (b"- 1", "must be a mapping of parameters, is list"), (b"a: !!python/object/apply:os.getcwd []", "not valid YAML"),
])  # fmt: skip
def test_broken_file(tmp_path, content, words):
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_params_file(file)
    assert str(caught.value).startswith(f"{file}: {words}") and "\n" not in str(caught.value)


def test_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"params.yaml: not found in {tmp_path}; run from the root of the project"):
        read_params_file()
