"""``params.yaml`` as typed, frozen objects: one ``Params`` class a stage, in the stage's ``config.py``.

The fields of a stage's ``Params`` are exactly the keys that ``dvc.yaml`` lists for that stage; a test holds it to that.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from stages.errors import InputError

PARAMS_FILE = Path("params.yaml")

Device = Literal["auto", "cuda", "mps", "cpu"]
#: What shares out work on images: processes of this machine, or a Ray cluster.
Engine = Literal["local", "ray"]
Method = Literal["uhscm", "dsch", "fused", "greedyhash", "bihalf", "cibhash", "sdc", "duh_eg"]


def _multiple_of_eight(bits: int) -> int:
    if bits <= 0 or bits % 8:
        raise ValueError("must be a positive multiple of 8")
    return bits


Bits = Annotated[int, AfterValidator(_multiple_of_eight)]

#: What scikit-learn takes as a seed.
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Frozen(BaseModel):
    """Base of every parameter object: immutable, strict about types, finite numbers, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


P = TypeVar("P", bound=Frozen)


def read_params_file(path: Path = PARAMS_FILE) -> dict[str, Any]:
    """The parameters file as plain dictionaries.

    Raises:
        InputError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found in {Path.cwd()}; run from the root of the project") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not valid YAML ({reason})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping of parameters, is {type(values).__name__}")
    return values


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes`, section by section.

    >>> merged({"bits": 32, "train": {"lr": 0.1, "epochs": 60}}, {"train": {"epochs": 2}})
    {'bits': 32, 'train': {'lr': 0.1, 'epochs': 2}}
    """
    result = dict(values)
    for key, change in changes.items():
        both = isinstance(change, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], change) if both else change
    return result


def parse(model: type[P], values: dict[str, Any], path: Path = PARAMS_FILE) -> P:
    """Those keys of `values` that `model` has, checked.

    Raises:
        InputError: names the first bad key, its value and what is allowed.
    """
    try:
        return model.model_validate({key: values[key] for key in model.model_fields if key in values})
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error, model)}") from None


def unknown_key(key: str, known: Iterable[str]) -> str:
    """What to say of the unknown `key` (with the names of its sections, by points) where `known` ones may stand."""
    known = sorted(known)
    near = difflib.get_close_matches(key.split(".")[-1], known, n=1)
    return f"unknown key '{key}'; " + (f"did you mean '{near[0]}'?" if near else f"known ones are {', '.join(known)}")


def _first_problem(error: ValidationError, model: type[Frozen]) -> str:
    problem = error.errors(include_url=False)[0]
    key, value, message = ".".join(map(str, problem["loc"])), problem["input"], problem["msg"]
    if problem["type"] == "extra_forbidden":
        return unknown_key(key, _section(model, problem["loc"][:-1]).model_fields)
    if problem["type"] == "missing":
        return f"key '{key}' is missing; add it"
    if problem["type"] == "model_type":
        return f"{key}: must be a section with keys of its own, is {value!r}"
    message = message.removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    if isinstance(value, dict):  # a rule about several keys of a section
        return f"{key}: {message}"
    if isinstance(value, str) and "number" in message and _is_float(value):
        message += f"; YAML takes {value} for text, write it with a point, like 1.0e-3"
    return f"{key}: {value!r} is not allowed: {message}"


def _section(model: type[Frozen], names: Iterable[str | int]) -> type[Frozen]:
    for name in names:
        if isinstance(name, str):  # a number is a place in a list
            model = next(_sections(model.model_fields[name].annotation))
    return model


def _sections(annotation: Any) -> Iterator[type[Frozen]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
