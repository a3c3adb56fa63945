"""The same comparison as a queue of DVC experiments: of one data set, that of ``params.yaml``.

Every trained method at every code length and with every seed is an experiment; the other methods and the references
come from its stage ``baselines``. Hyperparameters are those of ``params.yaml``; the average precision of each query is
not among the metrics, so differences are tested over seeds alone.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from stages.artifacts import BASELINES, METRICS
from stages.benchmark.config import Plan
from stages.benchmark.plan import Row, measured_with, rows
from stages.benchmark.results import arranged
from stages.errors import InputError, OutsideError
from stages.mine.leakage import guidance
from stages.params import PARAMS_FILE, read_params_file

#: Of a report's entries, those that say how a run was guided or made; they are no columns of the results.
DESCRIPTION = ("near_duplicates", "queries", "database", "labels", "note", "overlapping_concepts", "run")


def commands(plan: Plan) -> list[list[str]]:
    """What queues the experiments of a plan, one command for each row of a trained method."""
    grid = ["-S", f"bits={_joined(plan.bits)}", "-S", f"seed={_joined(plan.seeds)}"]
    return [
        ["dvc", "exp", "run", "--queue", "-S", f"method={row.method}", *grid,
         *(part for key, value in row.params.items() for part in ("-S", f"{key}={json.dumps(value)}"))]
        for row in rows(plan) if row.is_trained
    ]  # fmt: skip


def enqueue(plan: Plan) -> None:
    """Put every experiment of the plan into the queue and say how to start it.

    Raises:
        InputError: the plan has no trained method; OutsideError: DVC refuses.
    """
    found = commands(plan)
    if not found:
        raise InputError("methods: no trained method is in the plan, so there is nothing to queue")
    for command in found:
        print(shlex.join(command), flush=True)
        _run([sys.executable, "-m", *command])
    print("benchmark: queued; `dvc queue start` runs them, `python -m stages benchmark --collect` writes the reports")


def collect(plan: Plan) -> tuple[pa.Table, dict[str, Any]]:
    """The results of the experiments of the current commit that belong to the plan, as those of a measurement.

    Raises:
        InputError: one is missing; says how many, and the state of the first.
    """
    shown = json.loads(_run([sys.executable, "-m", "dvc", "exp", "show", "--json", "--no-pager"]))
    done = list(_finished(shown))
    base, records, missing = read_params_file(), [], []
    for row in rows(plan):
        for bits in plan.bits if not row.is_reference else plan.bits[:1]:
            for seed in plan.seeds if not row.is_reference else plan.seeds[:1]:
                expected = measured_with(base, row, bits, seed)
                run = next((run for run in done if _belongs(run, row, expected)), None)
                if run is None:
                    missing.append(f"{row.name} at {bits} bits with seed {seed}")
                elif record := _record(run, row, bits, seed):
                    records.append(record)
    if missing:
        raise InputError(
            f"benchmark: {len(missing)} experiments of the plan are not finished at this commit, the first: "
            f"{missing[0]}; queue them with `python -m stages benchmark --queue`, run them with `dvc queue start`"
        )
    if not records:
        raise InputError("benchmark: the experiments have no metrics: the data set has no labels")
    table = arranged(pa.Table.from_pylist(_same_keys(records)), plan.metrics)
    return table, {"params": {base["dataset"]["name"]: base}}


def _finished(shown: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Finished experiments of ``dvc exp show --json``: their revision, parameters and metrics."""
    for base in shown:
        for experiment in base.get("experiments") or []:
            for revision in experiment.get("revs") or []:
                data = revision.get("data") or {}
                try:
                    params = data["params"][str(PARAMS_FILE)]["data"]
                    metrics = data["metrics"][str(METRICS)]["data"]
                except (KeyError, TypeError):  # queued, running or failed
                    continue
                if (experiment.get("executor") or {}).get("state") not in ("queued", "running", "failed"):
                    yield {"rev": revision["rev"], "params": params, "metrics": metrics}


def _belongs(run: dict[str, Any], row: Row, expected: dict[str, Any]) -> bool:
    """Whether a run with the parameters `expected` measures `row`: for an untrained method, those of any training."""
    apart_from = () if row.is_trained else ("method", "train")
    return all(run["params"].get(key) == value for key, value in expected.items() if key not in apart_from)


def _record(run: dict[str, Any], row: Row, bits: int, seed: int) -> dict[str, Any] | None:
    """A row of the results; None where a reference was not measured, for lack of concepts."""
    own = run["metrics"]
    if row.is_trained:
        metrics, guided = own, own["guidance"]
    else:
        metrics = json.loads(_run(["git", "show", f"{run['rev']}:{BASELINES}"])).get(row.method)
        if metrics is None:
            return None
        text = row.method == "concept_cosine"
        # Concepts are those that guided the run's method, which for one method are more than the kept ones.
        guided = guidance(row.method, int(text), own["concepts_overlapping_labels"])
    numbers = {name: value for name, value in metrics.items() if name not in DESCRIPTION and "concepts" not in name}
    return {
        "dataset": run["params"]["dataset"]["name"], **numbers, "method": row.name, "guidance": guided,
        "bits": None if row.is_reference else bits, "seed": None if row.is_reference else seed, "seconds": None,
        "hyperparameters": json.dumps(dict(row.params), sort_keys=True),
    }  # fmt: skip


def _same_keys(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for record in records for name in record)
    return [{name: record.get(name) for name in names} for record in records]


def _joined(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def _run(command: list[str]) -> str:
    """What a command prints.

    Raises:
        OutsideError: it is not there, or fails; with its last line.
    """
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise OutsideError(f"{command[0]}: not found; install it") from None
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
        raise OutsideError(f"{shlex.join(command)}: {said}")
    return result.stdout
