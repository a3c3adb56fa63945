"""The content of a report as an HTML page and as Markdown; all text in it is escaped."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.artifacts import Provenance
from stages.report.content import Content, Row
from stages.report.findings import metric_title
from stages.report.markdown import escaped, table

ROOM = Path(__file__).parent


def page(
    content: Content, pictures: Mapping[int, str], provenance: Provenance, times: Sequence[Sequence[str]] | None = None
) -> str:
    """The HTML page.

    Args:
        pictures: data URIs by image id, of all images in `content`.
        times: of the stages, a header and a row each; None: the page says how to see them.
    """
    environment = Environment(
        loader=FileSystemLoader(ROOM), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["metric"] = metric_title
    return environment.get_template("page.html").render(
        content=content, pictures=pictures, times=times, style=Markup((ROOM / "style.css").read_text(encoding="utf-8")),
        provenance=json.dumps(asdict(provenance), sort_keys=True),
    )  # fmt: skip


def summary(content: Content) -> str:
    """The Markdown for a pull request."""
    parts = [f"## {escaped(content.title)}", table(("", "run"), content.facts)]
    if content.rows:
        header = ["method", *map(metric_title, content.metrics)]
        rows = [[row.name, *(_cell(row, key) for key in content.metrics)] for row in content.rows]
        parts += ["### Metrics", table(header, rows, 1), "mAP is tie-aware; in brackets, the 95 % bootstrap interval "
                  "over the queries: of the run, and of the difference of the others to it. P@N is the precision among "
                  "the first N."]  # fmt: skip
        parts += ["### Published", escaped(content.published.why)]
        if content.published.rows:
            parts.append(table(("method", "bits", f"mAP@{content.published.cutoff:,}"), [
                (content.run_name, "", f"{content.published_value:.3f}"),
                *((name, bits, f"{value:.3f}") for name, bits, value in content.published.rows),
            ], 1))  # fmt: skip
    parts += ["### Codes", table(("", "database"), content.bit_facts)]
    parts += ["### To be known", "\n".join(f"- **{escaped(kind)}.** {escaped(text)}" for kind, text in content.warnings)
              or "Nothing."]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _cell(row: Row, key: str) -> str:
    if key not in row.values:
        return ""
    sign = "" if row.kind == "run" else "+"
    interval = " ({:{sign}.3f} to {:{sign}.3f})".format(*row.intervals[key], sign=sign) if key in row.intervals else ""
    return f"{row.values[key]:.3f}{interval}"
