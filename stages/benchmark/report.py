"""The results as tables for people: Markdown and LaTeX, with the tests and the search beside them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from stages.artifacts import Provenance
from stages.benchmark.config import spelled
from stages.benchmark.statistics import FLIPS, LEVEL, Comparison, comparisons, summary
from stages.evaluate.plots import TITLES

#: Said below every table.
TESTS = (
    "mAP is tie-aware; of the real-valued references, which have no ties, in stable order. Mean over the seeds, "
    "± standard deviation of a sample. Bold: the best binary method of a column. Marked: worse than it, tested "
    f"two-sided at {LEVEL:g} after Holm's correction over the methods of the column; † over the queries (paired "
    f"permutation test of their average precision, mean over the seeds, {FLIPS:,} random sign flips), ‡ over the seeds "
    "(paired t-test). The best is chosen on the same numbers, and three seeds are few: the test over queries says "
    "whether other queries would rank these trained networks alike, the one over seeds whether other trainings would."
)


@dataclass(frozen=True)
class Entry:
    """A number of a table: mean, standard deviation (None for a single seed), whether it is the best, its marks."""

    mean: float
    std: float | None
    best: bool
    queries: bool
    seeds: bool


@dataclass(frozen=True)
class Sheet:
    """The table of one data set.

    Attributes:
        dataset, protocol, splits: which; columns: (metric, bits).
        rows: (title, guidance, entries), an entry a column, None where nothing was measured.
    """

    dataset: str
    protocol: str
    splits: str
    columns: list[tuple[str, int]]
    rows: list[tuple[str, str, list[Entry | None]]]


def sheets(frame: pd.DataFrame, metrics: Sequence[str], tested: Sequence[Comparison]) -> list[Sheet]:
    """One table a data set; the values of references stand in the first column of each metric."""
    result = []
    for dataset, part in frame.groupby("dataset", sort=False):
        lengths = sorted({int(bits) for bits in part["bits"].dropna()}) or [-1]
        columns = [(metric, bits) for metric in metrics for bits in lengths]
        numbers = {metric: summary(part, metric) for metric in metrics}
        against = {(c.metric, c.bits, c.method): c for c in tested if c.dataset == dataset}
        lines = []
        for method, own in part.groupby("method", sort=False):
            reference = own["bits"].isna().all()
            entries = []
            for metric, bits in columns:
                where = (dataset, method, -1 if reference else bits)
                if where not in numbers[metric].index or (reference and bits != lengths[0]):
                    entries.append(None)
                    continue
                mean, std, _ = numbers[metric].loc[where]
                other = against.get((metric, bits, method))
                entries.append(Entry(
                    float(mean), None if pd.isna(std) else float(std), best=other is None and not reference,
                    queries=_significant(other and other.p_queries), seeds=_significant(other and other.p_seeds),
                ))  # fmt: skip
            lines.append((title(str(method)), own["guidance"].iloc[0], entries))
        result.append(Sheet(str(dataset), part["protocol"].iloc[0], part["splits"].iloc[0], columns, lines))
    return result


def _significant(p: float | None) -> bool:
    return p is not None and p < LEVEL


def title(method: str) -> str:
    """The name of a method in a table."""
    return TITLES.get(method, method)


def column_title(metric: str, bits: int) -> str:
    return f"{metric_title(metric)}, {bits} bits"


def metric_title(metric: str) -> str:
    return metric.replace("map_at_", "mAP@").replace("map_", "mAP@")


def number(value: float, digits: int = 3) -> str:
    """A number without the 0 before its point."""
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


# ---- Markdown


def markdown(frame: pd.DataFrame, metrics: Sequence[str], provenance: Provenance, extra: Mapping[str, Any]) -> str:
    """The whole report."""
    tested = comparisons(frame, metrics)
    parts = ["# Comparison of methods", TESTS]
    for sheet in sheets(frame, metrics, tested):
        parts.append(f"## {sheet.dataset}")
        parts.append(f"Protocol {sheet.protocol}, splits {sheet.splits}.")
        header = ["method", "guidance", *(column_title(*column) for column in sheet.columns)]
        body = [[name, guidance, *map(_markdown_entry, entries)] for name, guidance, entries in sheet.rows]
        parts.append(_markdown_table(header, body))
        parts += [_markdown_differences(sheet, tested), *_search_notes(extra.get("search", {}).get(sheet.dataset))]
    parts += ["## Made with", _provenance_lines(provenance, extra), "All parameters are in results.parquet."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_entry(entry: Entry | None) -> str:
    if entry is None:
        return ""
    mean = f"**{number(entry.mean)}**" if entry.best else number(entry.mean)
    marks = "†" * entry.queries + "‡" * entry.seeds
    return mean + marks + ("" if entry.std is None else f" ±{number(entry.std)}")


def _markdown_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _markdown_differences(sheet: Sheet, tested: Sequence[Comparison]) -> str:
    own = [c for c in tested if c.dataset == sheet.dataset]
    if not own:
        return ""
    body = [[metric_title(c.metric), str(c.bits), title(c.method), title(c.best), number(c.difference),
             p_value(c.p_queries), p_value(c.p_seeds)] for c in own]  # fmt: skip
    header = ["metric", "bits", "method", "best", "difference", "p over queries", "p over seeds"]
    return "Paired differences to the best, p after Holm's correction:\n\n" + _markdown_table(header, body)


def p_value(p: float | None) -> str:
    return "" if p is None else "< .001" if p < 0.001 else number(p)


def _search_notes(search: Mapping[str, Any] | None) -> list[str]:
    if not search:
        return ["No search: all methods ran with the values of params.yaml."]
    notes = [f"Search: {search['trials']} trials of each trained method at {search['bits']} bits, seed "
             f"{search['seed']}; the score is the tie-aware mAP of held-out training images by "
             f"{search['criterion']}."]  # fmt: skip
    body = []
    for method, found in search["methods"].items():
        for trial in found["trials"]:
            score = "failed" if trial["score"] is None else number(trial["score"], 4)
            is_chosen = "chosen" if trial["settings"] == found["chosen"] else ""
            body.append([title(method), spelled(trial["settings"]), score, is_chosen])
    return [*notes, _markdown_table(["method", "values", "score", ""], body)]


def _provenance_lines(provenance: Provenance, extra: Mapping[str, Any]) -> str:
    lines = [f"- {name} {version}" for name, version in provenance.versions.items()]
    for name, found in extra.get("datasets", {}).items():
        known = [f"{key} {value}" for key, value in found.items() if value not in ("", None)]
        lines.append(f"- {name}: {', '.join(known)}")
    return "\n".join(lines)


# ---- LaTeX

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "†": r"$^{\dagger}$", "‡": r"$^{\ddagger}$",
    "±": r"$\pm$",
}  # fmt: skip


def escaped(text: str) -> str:
    """Text in which LaTeX sees no command."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def latex(frame: pd.DataFrame, metrics: Sequence[str], provenance: Provenance, extra: Mapping[str, Any]) -> str:
    """One booktabs table a data set; what is known of the search and the versions as comments before it."""
    tested = comparisons(frame, metrics)
    told = {key: extra[key] for key in ("search", "datasets") if key in extra}
    comments = json.dumps({"versions": dict(provenance.versions), **told}, sort_keys=True)
    parts = [f"% \\usepackage{{booktabs}}\n% {comments}"]
    for sheet in sheets(frame, metrics, tested):
        lengths = list(dict.fromkeys(bits for _, bits in sheet.columns))
        groups = [f"\\multicolumn{{{len(lengths)}}}{{c}}{{{escaped(metric_title(metric))}}}" for metric in metrics]
        rules = [f"\\cmidrule(lr){{{3 + i * len(lengths)}-{2 + (i + 1) * len(lengths)}}}" for i in range(len(metrics))]
        lines = [
            "\\begin{table}", "\\centering",
            f"\\caption{{{escaped(f'{sheet.dataset}, protocol {sheet.protocol}, splits {sheet.splits}. {TESTS}')}}}",
            f"\\begin{{tabular}}{{ll{'r' * len(sheet.columns)}}}", "\\toprule",
            " & ".join(["", "", *groups]) + r" \\", " ".join(rules),
            " & ".join(["method", "guidance", *(f"{bits} bits" for _, bits in sheet.columns)]) + r" \\", "\\midrule",
            *(" & ".join([escaped(name), escaped(guidance), *map(_latex_entry, entries)]) + r" \\"
              for name, guidance, entries in sheet.rows),
            "\\bottomrule", "\\end{tabular}", "\\end{table}",
        ]  # fmt: skip
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _latex_entry(entry: Entry | None) -> str:
    if entry is None:
        return ""
    mean = f"\\textbf{{{number(entry.mean)}}}" if entry.best else number(entry.mean)
    marks = "\\dagger" * entry.queries + "\\ddagger" * entry.seeds
    spread = "" if entry.std is None else f" {{\\scriptsize$\\pm${number(entry.std)}}}"
    return mean + (f"$^{{{marks}}}$" if marks else "") + spread


