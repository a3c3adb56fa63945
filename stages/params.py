"""``params.yaml`` as typed, frozen objects: one ``Params`` class a stage, in the stage's ``config.py``.

The fields of a stage's ``Params`` are exactly the keys that ``dvc.yaml`` lists for that stage; a test holds it to that.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from stages.errors import InputError

PARAMS_FILE = Path("params.yaml")

Device = Literal["auto", "cuda", "mps", "cpu"]
Method = Literal["uhscm", "dsch", "fused"]


def _multiple_of_eight(bits: int) -> int:
    if bits <= 0 or bits % 8:
        raise ValueError("must be a positive multiple of 8")
    return bits


Bits = Annotated[int, AfterValidator(_multiple_of_eight)]


class Frozen(BaseModel):
    """Base of every parameter object: immutable, strict about types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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


def parse(model: type[P], values: dict[str, Any], path: Path = PARAMS_FILE) -> P:
    """Those keys of `values` that `model` has, checked.

    Raises:
        InputError: names the first bad key, its value and what is allowed.
    """
    try:
        return model.model_validate({key: values[key] for key in model.model_fields if key in values})
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"]) or "params"
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'; remove it or see the keys in the README"
    if problem["type"] == "missing":
        return f"key '{key}' is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {problem['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def load(model: type[P], path: Path = PARAMS_FILE) -> P:
    """Read `model` from the parameters file (see :func:`parse`)."""
    return parse(model, read_params_file(path), path)
