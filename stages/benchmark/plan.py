"""A plan, checked against the parameters of all stages, and the parameters of each measurement."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from stages.__main__ import STAGES
from stages.baselines.methods import METHODS as SHALLOW
from stages.benchmark.config import Plan, Settings
from stages.errors import InputError
from stages.params import Method, merged, parse, read_params_file, unknown_key

#: Real-valued upper references; they have neither bits nor a seed.
REFERENCES = ("feature_cosine", "concept_cosine")

#: Parameters that are paths, or may be: relative ones count from the root of the project, not from where a stage runs.
PATHS = ("dataset.path", "dataset.splits", "concepts.vocabulary")
FILES = ("clip.pretrained", "backbone.weights")


@dataclass(frozen=True)
class Row:
    """A row of the tables: its name, the method, and the values of ``train.*`` that only it has."""

    name: str
    method: str
    params: Mapping[str, Any]

    @property
    def is_trained(self) -> bool:
        return self.method in get_args(Method)

    @property
    def is_reference(self) -> bool:
        return self.method in REFERENCES


def read_plan(path: Path) -> tuple[Plan, dict[str, dict[str, Any]]]:
    """The plan at `path`, and the parameters of each of its data sets by name.

    Raises:
        InputError: the plan, or ``params.yaml`` with what the plan changes, is not valid; names the key.
    """
    values = read_params_file(path)
    for key in values:
        if key not in Plan.model_fields:
            raise InputError(f"{path}: {unknown_key(str(key), Plan.model_fields)}")
    plan = parse(Plan, values, path)
    known = (*get_args(Method), *SHALLOW, *REFERENCES)
    for name in plan.methods:
        if name not in known:
            raise InputError(f"{path}: methods: {unknown_key(name, known)}")
    for variant in plan.variants:
        if variant.name in known:
            raise InputError(f"{path}: variants: {variant.name!r} is the name of a method; take another")
    if plan.search:
        for row in rows(plan):
            if row.is_trained and row.method not in plan.search.grid:
                raise InputError(f"{path}: search.grid: has no values for {row.method}; give it some")
    base = read_params_file()
    params = {}
    for dataset in plan.datasets:
        place = Path(f"{path}: {dataset.name}")
        for key in dataset.params:
            if key not in base:
                raise InputError(f"{place}: {unknown_key(str(key), base)}")
            if key in ("method", "bits", "seed"):
                raise InputError(f"{place}: {key} is varied for every data set alike; set it at the top of the plan")
        params[dataset.name] = merged(base, dataset.params)
        for row in rows(plan):
            for bits in plan.bits:
                check(measured_with(params[dataset.name], row, bits, plan.seeds[0]), place)
            if plan.search and row.is_trained:
                for settings in plan.search.combinations(row.method):
                    check(measured_with(params[dataset.name], row, plan.search.bits, plan.search.seed, settings), place)
    return plan, params


def rows(plan: Plan) -> list[Row]:
    """The rows of the tables, in their order: the variants after the methods, the references last."""
    named = [Row(name, name, {}) for name in plan.methods]
    variants = [Row(variant.name, variant.method, variant.params) for variant in plan.variants]
    return [*(row for row in named if not row.is_reference), *variants, *(row for row in named if row.is_reference)]


def measured_with(
    params: Mapping[str, Any], row: Row, bits: int, seed: int, chosen: Settings | None = None
) -> dict[str, Any]:
    """`params` of a data set for one measurement; what a row has of its own goes before what was `chosen`."""
    method = {"method": row.method} if row.is_trained else {}
    result = {**params, **method, "bits": bits, "seed": seed}
    for key, value in {**(chosen or {}), **row.params}.items():
        result = replaced(result, key.split("."), value)
    return result


def replaced(values: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """`values` with another one at `path`; sections on the way are made where there is none."""
    if len(path) == 1:
        return {**values, path[0]: value}
    section = values.get(path[0])
    return {**values, path[0]: replaced(section if isinstance(section, Mapping) else {}, path[1:], value)}


def check(params: Mapping[str, Any], place: Path) -> None:
    """Refuse `params` that a stage would refuse.

    Raises:
        InputError: names `place`, the key, and what is allowed.
    """
    for stage in STAGES:
        parse(importlib.import_module(f"stages.{stage}.config").Params, dict(params), place)


def with_absolute_paths(params: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """`params` that mean the same from any directory."""
    result = dict(params)
    for key in (*PATHS, *FILES):
        section, name = key.split(".")
        value = params[section].get(name)
        if isinstance(value, str) and not value.startswith("~") and "://" not in value and (
            key in PATHS or (root / value).exists()
        ):  # fmt: skip
            result = replaced(result, [section, name], str(root / value))
    return result
