"""Writes the tables of docs/reliability.md from the record of a nightly run: ``make nightly`` calls it.

    python tests/fault_table.py RECORD.xml [RECORD.xml ...] docs/reliability.md
"""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from faults import KINDS, OUTCOMES
from stage_runner import pipeline

#: What stands around the tables.
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


def read(record: Path) -> list[tuple[str, str, str]]:
    """(kind, stage, outcome) of every fault in a record of pytest.

    Raises:
        SystemExit: a test that injects one has failed, or was skipped.
    """
    found, lost = [], []
    for case in ElementTree.parse(record).iter("testcase"):
        noted = [item.get("value") for item in case.iter("property") if item.get("name") == "fault"]
        if noted and case.find("failure") is None and case.find("error") is None:
            found += [tuple(value.split("|")) for value in noted]
        elif noted:
            lost.append(case.get("name"))
    if lost:
        sys.exit(f"lost: {', '.join(lost)}")
    return found


def tables(faults: list[tuple[str, str, str]]) -> str:
    """Kinds by outcomes and stages by kinds."""
    stages = list(pipeline()["stages"])
    by_outcome = Counter((kind, outcome) for kind, _, outcome in faults)
    by_stage = Counter((stage, outcome) for _, stage, outcome in faults)
    lines = [f"{len(faults)} faults, none lost.", ""]
    lines += _table("fault", "what is done", {kind: KINDS[kind] for kind in KINDS}, by_outcome)
    lines += ["", *_table("stage", "what it makes", {s: pipeline()["stages"][s]["desc"] for s in stages}, by_stage)]
    return "\n".join(lines) + "\n"


def _table(name: str, about: str, rows: dict[str, str], counts: Counter[tuple[str, str]]) -> list[str]:
    lines = [f"| {name} | {about} | faults | {' | '.join(OUTCOMES)} |", "|---|---|" + "---:|" * (len(OUTCOMES) + 1)]
    for row, words in rows.items():
        numbers = [counts[row, outcome] for outcome in OUTCOMES]
        if sum(numbers):
            cells = [str(sum(numbers)), *(str(number or "") for number in numbers)]
            lines.append(f"| {row} | {words} | {' | '.join(cells)} |")
    return lines


def put(page: Path, begin: str, end: str, text: str) -> None:
    """Write `text` into a page in place of what stands between two marks."""
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}\n\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    *records, page = map(Path, sys.argv[1:])
    found = [fault for record in records for fault in read(record)]
    put(page, BEGIN, END, tables(found))
