"""Methods x code lengths x seeds x data sets, compared: results, tables with significance, figures.

Reads a plan (see docs/benchmark.md) and params.yaml, works under .resume/benchmark/, and writes reports/benchmark/:
results.parquet (one row a measurement), table.md, table.tex, and one PNG a data set. The same command goes on with a
run that was killed, and measures only what is missing. Hyperparameters of all trained methods get the same small search
on pseudo-labels of held-out training images; no label is read for it.
"""

from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from stages.params import Bits, Frozen, Method, Seed

#: The plan that is taken where none is named.
DEFAULT_PLAN = Path(__file__).parent / "plans" / "scenes.yaml"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ()+,._-]*$")]


#: Parameters of the section ``train`` by their dotted names, as ``dvc exp run -S`` takes them.
TrainKey = Annotated[str, Field(pattern=r"^train\.\w+(\.\w+)*$")]
Settings = dict[TrainKey, Any]


class DatasetPlan(Frozen):
    """A data set: what differs from ``params.yaml`` in all that comes before ``train``, and in ``train`` for all."""

    name: Name
    params: dict[str, Any] = Field(default_factory=dict)


class Variant(Frozen):
    """A trained method under a name of its own, with other values of ``train.*`` (dotted names): an ablation."""

    name: Name
    method: Method
    params: Settings


class Search(Frozen):
    """The same small search for every trained method.

    Attributes:
        criterion: what is retrieved by the codes of held-out training images: images of the same ``concepts`` or of the
            same ``clusters`` of features; ``auto`` takes concepts where a data set has a text side.
        bits, seed: at which the trials are trained; what is chosen holds for all code lengths and seeds.
        grid: method -> parameter of the section ``train`` -> values; every method has the same number of combinations.
    """

    criterion: Literal["auto", "concepts", "clusters"]
    bits: Bits
    seed: Seed
    grid: Annotated[dict[Method, dict[TrainKey, list[Any]]], Field(min_length=1)]

    @model_validator(mode="after")
    def _equal_trials(self) -> "Search":
        counts = {method: len(self.combinations(method)) for method in self.grid}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            said = ", ".join(f"{method} {count}" for method, count in counts.items())
            raise ValueError(f"every method needs the same number of trials, there are: {said}")
        return self

    @property
    def trials(self) -> int:
        """Trials of each method."""
        return len(self.combinations(next(iter(self.grid))))

    def combinations(self, method: str) -> list[Settings]:
        """All combinations of values for `method`, the first values first: the trials."""
        space = self.grid[method]
        return [dict(zip(space, values, strict=True)) for values in product(*space.values())]


class Plan(Frozen):
    """What is compared.

    Attributes:
        datasets, methods, bits, seeds: every combination is measured. Methods are the trained ones, the names in
            ``stages/baselines/methods.py``, and the real-valued references feature_cosine and concept_cosine.
        variants: further rows of the tables; they take over what the search chose for their method.
        metrics: the columns of the tables; the first one is drawn.
        search: null: all methods run with the values of ``params.yaml``.
    """

    datasets: Annotated[tuple[DatasetPlan, ...], Field(strict=False, min_length=1)]
    methods: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    variants: Annotated[tuple[Variant, ...], Field(strict=False)] = ()
    bits: Annotated[tuple[Bits, ...], Field(strict=False, min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)]
    metrics: Annotated[tuple[Annotated[str, Field(pattern=r"^map_(all|at_\d+)$")], ...],
                       Field(strict=False, min_length=1)]  # fmt: skip
    search: Search | None

    @field_validator("datasets", "methods", "variants", "bits", "seeds", "metrics")
    @classmethod
    def _none_twice(cls, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [getattr(entry, "name", entry) for entry in entries]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"has {name!r} twice")
        return entries


def spelled(settings: Settings) -> str:
    """Settings in words, short."""
    return ", ".join(f"{key.removeprefix('train.')} {value}" for key, value in settings.items()) or "as in params.yaml"
