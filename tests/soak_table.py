"""Writes the tables of a soak into docs/reliability.md from the record of a nightly run: ``make nightly`` calls it.

    python tests/soak_table.py RECORD.xml docs/reliability.md
"""

import sys
from pathlib import Path
from xml.etree import ElementTree

from fault_table import put

#: What stands around the tables.
BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"

#: Heads of the tables, by the property that has their rows.
HEADS = {
    "soak": ("soaked", "how much", "memory, median", "its trend", "handles", "threads"),
    "growth": ("where", "files, in all", "bytes of an experiment, median", "bytes, in all"),
}


def read(record: Path) -> dict[str, list[list[str]]]:
    """The rows of each table in a record of pytest.

    Raises:
        SystemExit: a test that has noted some has failed.
    """
    found: dict[str, list[list[str]]] = {name: [] for name in HEADS}
    for case in ElementTree.parse(record).iter("testcase"):
        noted = [item for item in case.iter("property") if item.get("name") in HEADS]
        if noted and (case.find("failure") is not None or case.find("error") is not None):
            sys.exit(f"failed: {case.get('name')}")
        for item in noted:
            found[item.get("name")].append(item.get("value").split("|"))
    return found


def tables(rows: dict[str, list[list[str]]]) -> str:
    """What stays in memory while something is repeated, and what an experiment adds to the disk."""
    texts = []
    for name, head in HEADS.items():
        ruler = ["---", "---" if name == "soak" else "---:", *["---:"] * (len(head) - 2)]
        lines = [f"| {' | '.join(row)} |" for row in (head, *rows[name])]
        texts.append("\n".join([lines[0], f"|{'|'.join(ruler)}|", *lines[1:]]) + "\n")
    return "\n".join(texts)


if __name__ == "__main__":
    record, page = map(Path, sys.argv[1:])
    rows = read(record)
    if all(rows.values()):  # not of a part of the soak
        put(page, BEGIN, END, tables(rows))
