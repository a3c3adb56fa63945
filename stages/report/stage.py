"""Read all artifacts of a run, write the page and the summary."""

from pathlib import Path

from stages.artifacts import Provenance, replacing
from stages.report import render
from stages.report.config import Params
from stages.report.content import content
from stages.report.inputs import read_run
from stages.report.pictures import data_uris

PAGE = Path("reports/index.html")
SUMMARY = Path("reports/summary.md")


def run(_: Params) -> None:
    """Read the run, write ``reports/index.html`` and ``reports/summary.md``."""
    found = read_run()
    shown = content(found)
    ids = [i for group in shown.examples.values() for example in group
           for i in (example.query, *(neighbour.image for neighbour in example.neighbours))]  # fmt: skip
    ids += [i for group in shown.groups for part in group.components for i in part.images]
    pictures = data_uris(found.shards, ids)
    made = found.codes.provenance
    provenance = Provenance("report", made.dataset, made.model, made.params)
    for path, text in ((SUMMARY, render.summary(shown)), (PAGE, render.page(shown, pictures, provenance))):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
