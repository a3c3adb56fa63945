"""``python -m stages search``: one query, its hits as a table, as JSON, as Parquet or as a contact sheet."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.artifacts import write_json
from stages.codes import unpack
from stages.download.files import text as as_text
from stages.errors import InputError
from stages.search.hits import Hits
from stages.search.searcher import Searcher

SUFFIXES = (".json", ".parquet", ".png")


def search(
    images: list[Path], index: int | None, text: str | None, top: int, radius: int | None, rerank: bool, as_json: bool,
    output: Path | None, model: str | None,
) -> None:  # fmt: skip
    """Search ``data/index`` of the current directory and print what was found, or write it to `output`.

    Args:
        images: files, several of which are one query; index: an id; text: in words. One of the three.
        top, radius, rerank: as of :class:`stages.search.Searcher`.
        as_json: print JSON, also where there is an `output`.
        model: a published network, see :meth:`Searcher.open`.

    Raises:
        InputError: not one of the three is given, `output` is of no known kind, or the search cannot be done.
    """
    if bool(images) + (index is not None) + (text is not None) != 1:
        raise InputError("search: give one of --image FILE (or several of it), --id N and --text WORDS")
    if output is not None and output.suffix not in SUFFIXES:
        raise InputError(f"--output {as_text(str(output))}: hits are written as .json, .parquet or .png")
    searcher = Searcher.open(model=model)
    options: dict[str, Any] = {"top": top, "radius": radius, "rerank": rerank}
    if images:
        hits = searcher.by_images(images, **options)
    elif index is not None:
        hits = searcher.by_id(index, **options)
    else:
        hits = searcher.by_text(text, **options)
    if output is not None:
        write(output, searcher, hits)
    if as_json:
        Console(highlight=False).out(json.dumps(told(hits), indent=2, ensure_ascii=False), highlight=False)
    elif output is None:
        show(hits, Console(highlight=False))
    if not searcher.index.exact and output is None and not as_json:
        print("an ivf index: nearer images may have been missed; index.probes says how many groups are looked into")


def told(hits: Hits) -> dict[str, Any]:
    """A query and its hits as JSON has them; the code as 0 and 1."""
    bits = "".join("1" if sign > 0 else "0" for sign in unpack(hits.code[None])[0])
    return {"query": as_text(hits.query), "code": bits, "hits": hits.to_dicts()}


def show(hits: Hits, console: Console) -> None:
    """Print the hits as a table."""
    entries = hits.to_dicts()
    console.print(Text(as_text(hits.query), "bold"))
    if not entries:
        console.print("no image within that radius")
        return
    columns = {"": [str(entry["rank"]) for entry in entries], "id": [str(entry["id"]) for entry in entries],
               "distance": [str(entry["distance"]) for entry in entries]}  # fmt: skip
    if hits.scores is not None:
        columns["cosine"] = ["-" if entry["score"] is None else f"{entry['score']:.3f}" for entry in entries]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, justify="right")
    shown = {"shows": [", ".join(entry["labels"]) for entry in entries],
             "file": [entry["name"] or "" for entry in entries]}  # fmt: skip
    for name, values in shown.items():
        if any(values):
            columns[name] = values
            table.add_column(name, overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row))
    console.print(table)


def write(output: Path, searcher: Searcher, hits: Hits) -> None:
    """Write the hits to a ``.json``, ``.parquet`` or ``.png`` file, atomically."""
    if output.suffix == ".json":
        write_json(output, told(hits))
    elif output.suffix == ".parquet":
        import pyarrow as pa

        from stages.tables import write_table

        entries = hits.to_dicts()
        kinds = {"rank": pa.int64(), "id": pa.int64(), "distance": pa.int64(), "score": pa.float64(),
                 "name": pa.string(), "labels": pa.list_(pa.string())}  # fmt: skip
        table = pa.table({key: pa.array([entry[key] for entry in entries], kind) for key, kind in kinds.items()})
        found = told(hits)
        write_table(table, output, searcher.index.provenance, {"query": found["query"], "code": found["code"]})
    else:
        from stages.search.sheet import draw_sheet

        scores = [""] * len(hits) if hits.scores is None else [
            "" if np.isnan(score) else f" | {score:.2f}" for score in hits.scores
        ]  # fmt: skip
        captions = [f"{distance}{score}" for distance, score in zip(hits.distances, scores, strict=True)]
        labels = [", ".join(some) for some in hits.labels]
        draw_sheet(output, searcher.thumbnails(hits), captions, labels, as_text(hits.query))
