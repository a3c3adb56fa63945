"""``python -m stages compare REV1 REV2``: two runs side by side, out of git; nothing is checked out.

A run is a revision of git, an experiment of DVC by its name, or ``workspace``: the files as they lie here. Compared are
``params.yaml``, ``reports/metrics.json`` and ``reports/baselines.json`` of each.
"""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import md5
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.artifacts import BASELINES, METRICS
from stages.errors import InputError
from stages.params import PARAMS_FILE
from stages.report.markdown import escaped, table

WORKSPACE = "workspace"
LOCK = Path("dvc.lock")

#: Metrics of which more is better.
BETTER = re.compile(r"\b(map|precision)_")


@dataclass(frozen=True)
class Side:
    """One run: parameters by path (``train.epochs``), metrics, metrics of the baselines by name, and what is odd."""

    name: str
    params: Mapping[str, Any]
    metrics: Mapping[str, Any]
    baselines: Mapping[str, Mapping[str, Any]]
    notes: list[str]


def compare(first: str, second: str, as_json: bool, markdown: bool) -> None:
    """Print the comparison of two revisions.

    Raises:
        InputError: one is unknown, or has no metrics, or what it has is damaged; or both formats are asked for.
    """
    if as_json and markdown:
        raise InputError("--json, --markdown: choose one of them")
    found = comparison(read_side(first), read_side(second))
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    elif markdown:
        print(as_markdown(found))
    else:
        _print_tables(found)


# ---- reading


def read_side(revision: str) -> Side:
    """The run at a revision.

    Raises:
        InputError: it is unknown, has no metrics or no parameters, or these are damaged.
    """
    read = _file_reader(revision)
    metrics, baselines = _json(read, revision, METRICS), _json(read, revision, BASELINES, optional=True)
    content = read(PARAMS_FILE)
    if content is None:
        raise InputError(f"{revision}: has no {PARAMS_FILE}; compare revisions of this project")
    params = _yaml(content, revision, PARAMS_FILE)
    notes = []
    if not baselines:
        notes.append(f"{revision} has no {BASELINES}")
    if (lock := read(LOCK)) is not None:
        notes += _stale(revision, _yaml(lock, revision, LOCK), params, read(METRICS))
    methods = {name: row for name, row in baselines.items() if isinstance(row, Mapping)}
    return Side(revision, dict(_flat(params)), metrics, methods, notes)


def _file_reader(revision: str) -> Callable[[Path], bytes | None]:
    """What gives the content of a file at a revision, None where it has none."""
    if revision == WORKSPACE:
        return lambda path: path.read_bytes() if path.is_file() else None
    commit = _commit(revision)

    def read(path: Path) -> bytes | None:
        result = _git("show", f"{commit}:./{path.as_posix()}")
        return result.stdout if result.returncode == 0 else None

    return read


def _commit(revision: str) -> str:
    if _git("rev-parse", "--git-dir").returncode:
        raise InputError(f"{Path.cwd()}: no git repository, so there are no revisions to compare; run inside of one")
    result = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if result.returncode == 0:
        return result.stdout.decode().strip()
    listed = _git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").stdout.decode().splitlines()
    # DVC keeps an experiment at refs/exps/ab/cdef.../NAME, of the commit abcdef... that it is based on.
    refs = [line.split(" ", 1) for line in listed]
    found = {commit for commit, ref in refs
             if len(parts := ref.split("/", 4)) == 5 and len(parts[2]) == 2 and parts[4] == revision}  # fmt: skip
    if len(found) > 1:
        raise InputError(f"{revision}: {len(found)} experiments have this name; take the commit, of `dvc exp show`")
    if not found:
        raise InputError(
            f"{revision}: no revision of git and no experiment of DVC; `git log` and `dvc exp show` list them"
        )
    return found.pop()


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", *arguments], capture_output=True)
    except FileNotFoundError:
        raise InputError("git: not found on this machine; install it") from None


def _json(
    read: Callable[[Path], bytes | None], revision: str, path: Path, optional: bool = False
) -> dict[str, Any]:  # fmt: skip
    content = read(path)
    if content is None:
        if optional:
            return {}
        raise InputError(f"{revision}: has no {path}; run the pipeline there (`dvc repro`) and commit what it writes")
    try:
        values = json.loads(content)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{revision}: {path} is no JSON object; make it again with `dvc repro`")
    return values


def _yaml(content: bytes, revision: str, path: Path) -> dict[str, Any]:
    try:
        values = YAML(typ="safe").load(io.BytesIO(content))  # as DVC does, to which 1e-8 is a number
    except (YAMLError, UnicodeDecodeError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{revision}: {path} is no mapping in YAML; mend it there or compare another revision")
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for key, value in values.items():
        inner = isinstance(value, Mapping) and value
        flat += _flat(value, f"{prefix}{key}.") if inner else [(f"{prefix}{key}", value)]
    return flat


def _stale(revision: str, lock: Mapping[str, Any], params: Mapping[str, Any], metrics: bytes | None) -> list[str]:
    """What ``dvc.lock`` tells against the files beside it; of one in another form nothing."""
    try:
        used: dict[str, Any] = {}
        for stage in lock["stages"].values():
            used |= stage.get("params", {}).get(str(PARAMS_FILE), {})
        digests = [out["md5"] for out in lock["stages"]["evaluate"]["outs"] if out["path"] == METRICS.as_posix()]
    except (KeyError, TypeError, AttributeError):
        return []
    notes = []
    changed = sorted(key for key, value in used.items() if params.get(key) != value)
    if changed:
        notes.append(f"{revision}: {', '.join(changed)} in {PARAMS_FILE} changed after the run that {LOCK} records")
    if metrics is not None and digests and md5(metrics, usedforsecurity=False).hexdigest() not in digests:
        notes.append(f"{revision}: {METRICS} is not that of the run that {LOCK} records")
    return notes


# ---- comparing


def comparison(first: Side, second: Side) -> dict[str, Any]:
    """Both sides as one JSON object: ``params`` that differ, ``metrics`` and ``baselines`` with differences, ``notes``.

    A difference is that of the second to the first; None where one has no number.
    """
    names = list(dict.fromkeys([*first.params, *second.params]))
    params = {name: [first.params.get(name), second.params.get(name)] for name in names
              if first.params.get(name) != second.params.get(name)}  # fmt: skip
    methods = list(dict.fromkeys([*first.baselines, *second.baselines]))
    notes = list(dict.fromkeys([*first.notes, *second.notes]))
    for key, what in (("protocol", "protocols"), ("splits", "splits")):
        values = [side.metrics.get(key) for side in (first, second)]
        if values[0] != values[1]:
            notes.append(f"the {what} differ ({values[0]}, {values[1]}): these metrics do not compare")
    return {
        "runs": [first.name, second.name], "params": params, "metrics": _differences(first.metrics, second.metrics),
        "baselines": {name: _differences(first.baselines.get(name, {}), second.baselines.get(name, {}))
                      for name in methods},
        "notes": notes,
    }  # fmt: skip


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    rows = {}
    for name in dict.fromkeys([*first, *second]):
        values = [first.get(name), second.get(name)]
        if not any(isinstance(value, list | dict) for value in values):
            numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
            difference = values[1] - values[0] if numbers else None
            rows[name] = {"first": values[0], "second": values[1], "difference": difference}
    return rows


# ---- showing


def _rows(values: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    return [(name, _shown(row["first"]), _shown(row["second"]), _signed(row["difference"]))
            for name, row in values.items()]  # fmt: skip


def _baseline_rows(baselines: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """mAP alone, tie-aware where it is."""
    rows = []
    for method, metrics in baselines.items():
        names = [name for name in metrics if name.startswith("map_") and name.endswith("_tie_aware")]
        names = names or [name for name in metrics if name.startswith("map_")]
        rows += [(f"{method} {row[0]}", *row[1:]) for row in _rows({name: metrics[name] for name in names})]
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _signed(value: float | None) -> str:
    if value is None:
        return ""
    shown = f"{value:+.4f}" if isinstance(value, float) else f"{value:+d}"
    return shown if shown.strip("+-0.") else shown[1:]  # nothing has no sign


def _param(value: Any) -> str:
    return "–" if value is None else str(value)


def _sections(found: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """(title, header, rows) of each table."""
    runs = tuple(found["runs"])
    params = [(name, *map(_param, values)) for name, values in found["params"].items()]
    return [
        ("Parameters that differ", ("parameter", *runs), params),
        ("Metrics", ("metric", *runs, "difference"), _rows(found["metrics"])),
        ("Baselines", ("baseline", *runs, "difference"), _baseline_rows(found["baselines"])),
    ]  # fmt: skip


def as_markdown(found: Mapping[str, Any]) -> str:
    """The comparison for a pull request."""
    parts = []
    for title, header, rows in _sections(found):
        parts += [f"### {title}", table(header, rows, 1) if rows else "None."]
    parts += [f"- {escaped(note)}" for note in found["notes"]]
    return "\n\n".join(parts)


def _print_tables(found: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 160)
    for title, header, rows in _sections(found):
        if not rows:
            console.print(Text(f"{title}: none"))
            continue
        shown = Table(title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
        for place, name in enumerate(header):
            shown.add_column(Text(name), justify="right" if place else "left", overflow="fold")
        for row in rows:
            cells = [Text(cell) for cell in row]
            if BETTER.search(row[0]) and row[-1][:1] in ("+", "-"):
                cells[-1].stylize("green" if row[-1][0] == "+" else "red")
            shown.add_row(*cells)
        console.print(shown)
        console.print()
    for note in found["notes"]:
        console.print(Text(f"note: {note}", style="yellow"))
