"""``python -m stages explain --image FILE`` (or ``--id N``): the code of one image in words, or as JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.errors import InputError
from stages.explain.image import encode_file, encoded_id
from stages.explain.inputs import read_semantics
from stages.explain.reading import read_code
from stages.explain.tables import BITS, read_bits, read_component_concepts


def explain(image: Path | None, index: int | None, as_json: bool = False) -> None:
    """Print what the code of an image says, on standard output.

    Args:
        image: a file; index: or the id of an image of the data set.
        as_json: print a JSON object instead of words.

    Raises:
        InputError: neither or both are given, the image cannot be used, or an artifact is missing, damaged or another
            run's.
    """
    if (image is None) == (index is None):
        raise InputError("explain: give one of --image FILE and --id N")
    profiles, made_from = read_bits()
    component_concepts = read_component_concepts()
    semantics = read_semantics(made_from, BITS)
    found = encode_file(image, made_from) if image is not None else encoded_id(index, made_from)
    fine = semantics.components.fine(found.features)
    told = {"image": found.name} | read_code(
        found.signs, semantics.shares(found.features)[0],
        {"fine": fine[0], "coarse": semantics.components.coarse(fine)[0]}, profiles, component_concepts,
    )  # fmt: skip
    console = Console(highlight=False)
    if as_json:
        console.out(json.dumps(told, indent=2, ensure_ascii=False), highlight=False)
        return
    for part in in_words(told):
        console.print(part)


def in_words(told: dict[str, Any]) -> Iterator[Text | Table]:
    """What :func:`stages.explain.reading.read_code` tells: the image, what is in it, and one line a bit."""
    yield Text(told["image"], "bold")
    groups = [told["code"][start : start + 8] for start in range(0, len(told["code"]), 8)]
    facts = Table.grid(padding=(0, 2))
    facts.add_row("code", Text.assemble((" ".join(groups), "bold"), f" ({len(told['code'])} bits)"))
    if told["concepts"]:
        facts.add_row("concepts", _joined([f"{entry['name']} {entry['share']:.0%}" for entry in told["concepts"]]))
    for level, entries in told["components"].items():
        facts.add_row(level, _joined([
            f"{entry['name'].removeprefix(f'{level} ')}: {entry['responsibility']:.0%}"
            + (f" ({', '.join(entry['concepts'][:3])})" if entry["concepts"] else "") for entry in entries
        ]))  # fmt: skip
    facts.add_row("nearest", _joined([f"{entry['name']} {entry['cosine']:z.2f}" for entry in told["nearest"]]))
    facts.add_row("", Text("cosine of the code and the mean code of the images that have it", "dim"))
    yield facts

    bits = Table(box=None, pad_edge=False, header_style="dim")
    bits.add_column("bit", justify="right")
    bits.add_column("value", justify="right")
    bits.add_column("correlates with (bold: what the value speaks for)")
    for bit in told["bits"]:
        words = [(f"{entry['correlation']:+.2f} {entry['name']}", "bold" if entry["speaks_for"] else "dim")
                 for entry in bit["meanings"]]  # fmt: skip
        joined = Text("  ").join(Text(*word) for word in words)
        bits.add_row(str(bit["bit"]), str(bit["value"]), joined if words else Text("nothing", "dim"))
    yield bits


def _joined(entries: list[str]) -> Text:
    """As text, in which rich looks for no markup."""
    return Text(", ".join(entries) or "none")
