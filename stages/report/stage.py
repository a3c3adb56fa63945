"""Read all artifacts of a run, write the page and the summary."""

from collections.abc import Sequence
from pathlib import Path

from stages.artifacts import Provenance, replacing
from stages.evaluate.pictures import shown_images
from stages.report import render
from stages.report.config import Params
from stages.report.content import Content, content
from stages.report.inputs import Run, read_run
from stages.report.pictures import data_uris

PAGE = Path("reports/index.html")
SUMMARY = Path("reports/summary.md")


def run(_: Params) -> None:
    """Read the run, write ``reports/index.html`` and ``reports/summary.md``."""
    found = read_run()
    shown = content(found)
    html = page(found, shown)  # reads images, of which one may be damaged: nothing is written before
    write(SUMMARY, render.summary(shown))
    write(PAGE, html)


def page(found: Run, shown: Content, times: Sequence[Sequence[str]] | None = None) -> str:
    """The HTML of a run, with the pictures of images; `times` as of :func:`stages.report.render.page`."""
    ids = shown_images([example for group in shown.examples.values() for example in group], shown.groups)
    made = found.codes.provenance
    provenance = Provenance("report", made.dataset, made.model, made.params)
    return render.page(shown, data_uris(found.shards, ids), provenance, times)


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
