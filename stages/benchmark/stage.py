"""Prepare the data sets of a plan, search, measure what is missing, write results, tables and figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.artifacts import Provenance, library_versions, replacing
from stages.benchmark import dvc_queue
from stages.benchmark.cells import LIBRARIES, Cell, is_possible
from stages.benchmark.config import DEFAULT_PLAN, Plan
from stages.benchmark.figures import draw_figures
from stages.benchmark.plan import read_plan, rows
from stages.benchmark.prepare import Prepared, prepare
from stages.benchmark.report import latex, markdown, title
from stages.benchmark.results import REPORTS, collect, read_results, write_results
from stages.benchmark.search import Trial, chosen, criterion, prepare_trials
from stages.benchmark.work import alone, run_missing
from stages.errors import InputError


def run(path: Path | None, workers: int, queue: bool = False, collected: bool = False) -> None:
    """Carry out the plan at `path`, by default the one that comes with the package, with so many processes.

    Args:
        queue: put it into DVC's queue of experiments instead; collected: write the reports of such experiments.
    """
    plan, params = read_plan(path or DEFAULT_PLAN)
    if queue:
        dvc_queue.enqueue(plan)
        return
    if collected:
        table, extra = dvc_queue.collect(plan)
    else:
        with alone():
            table, extra = measure(plan, params, workers)
    settings = plan.model_dump(mode="json", exclude={"search"} if collected else None)
    provenance = Provenance("benchmark", params=settings, versions=library_versions(*LIBRARIES, "dvc"))
    write_results(table, provenance, extra)
    write_reports(plan.metrics)


def measure(plan: Plan, params: Mapping[str, Mapping[str, Any]], workers: int) -> tuple[Any, dict[str, Any]]:
    """Everything that is missing; then the table of results and its metadata."""
    seeds = {*plan.seeds, *([plan.search.seed] if plan.search else [])}
    prepared = {name: prepare(name, values, sorted(seeds)) for name, values in params.items()}
    searched: dict[str, dict[str, Any]] = {}
    if plan.search:
        trials = {name: possible_trials(plan, data) for name, data in prepared.items()}
        run_missing([trial for part in trials.values() for trial in part], workers, "search")
        for name, data in prepared.items():
            searched[name] = {
                "criterion": criterion(data, plan.search), "trials": plan.search.trials, "bits": plan.search.bits,
                "seed": plan.search.seed, "space": plan.search.grid, "methods": chosen(trials[name]),
            }  # fmt: skip
    cells = [cell for name, data in prepared.items() for cell in cells_of(plan, data, searched.get(name))]
    run_missing(cells, workers, "benchmark")
    extra = {"search": searched, "datasets": {name: described(data) for name, data in prepared.items()},
             "params": params}  # fmt: skip
    return collect([cell.file for cell in cells], plan.metrics), extra


def possible_trials(plan: Plan, data: Prepared) -> list[Trial]:
    """The trials of those methods of the plan that are trained, on a data set that has what they need."""
    methods = {row.method for row in rows(plan) if row.is_trained and is_possible(data, row)}
    try:
        return [trial for trial in prepare_trials(data, plan.search) if trial.method in methods]
    except InputError as error:
        raise InputError(f"{data.name}, search: {error}") from None


def cells_of(plan: Plan, data: Prepared, searched: Mapping[str, Any] | None) -> list[Cell]:
    """All measurements on a data set, in the order of the results."""
    cells = []
    for row in rows(plan):
        if not is_possible(data, row):
            print(f"benchmark: {data.name} has no text side: without {title(row.name)}")
            continue
        values = searched["methods"].get(row.method, {}).get("chosen", {}) if searched else {}
        if row.is_reference:
            cells.append(Cell(data, row, None, None, {}))
        else:
            cells += [Cell(data, row, bits, seed, values) for bits in plan.bits for seed in plan.seeds]
    return cells


def described(data: Prepared) -> dict[str, Any]:
    """What a reader of the results must know of a data set."""
    found = asdict(data.dataset)
    return {
        **{key: found[key] for key in ("digest", "protocol", "splits", "near_duplicates")}, **found["counts"],
        "model": data.model, "vocabulary": Path(data.params["concepts"]["vocabulary"]).name,
        "concepts": len(data.concepts.kept),
        "concepts_overlapping_labels": len(data.concepts.overlapping("concept_cosine", data.dataset.class_names)),
    }  # fmt: skip


def write_reports(metrics: Sequence[str]) -> None:
    """Tables and figures, from ``results.parquet`` alone."""
    frame, provenance, extra = read_results()
    for name, text in (("table.md", markdown), ("table.tex", latex)):
        with replacing(REPORTS / name) as temporary:
            temporary.write_text(text(frame, metrics, provenance, extra), encoding="utf-8")
    draw_figures(frame, metrics, REPORTS, provenance)
