"""The profiles of the faults: what CI and the nightly run inject."""

from collections import Counter
from pathlib import Path

import fault_table
import pytest

# The modules that inject faults; importing them fills the list.
import test_bad_input
import test_damage
import test_disk_faults
import test_interruption
import test_lost_processes
import test_meanwhile
from disturbed import STAGES
from faults import FAULTS, KINDS, faults

MODULES = (test_bad_input, test_damage, test_disk_faults, test_interruption, test_lost_processes, test_meanwhile)
IN_CI = [fault for fault in FAULTS if not fault.nightly]


def test_numbers():
    assert MODULES and len(FAULTS) >= 500 and len(IN_CI) >= 50


def test_every_kind_is_injected_into_every_stage():
    """As far as it has inputs, or parameters, or several processes that Ray or torchrun start."""
    stages = {kind: {fault.stage for fault in FAULTS if fault.kind == kind} for kind in KINDS}
    with_inputs = set(STAGES) - {"download", "weights"}
    for kind in KINDS:
        expected = set(STAGES)
        if kind.startswith(("input", "bit")) or kind in ("no permission to read", "read error"):
            expected = with_inputs
        if kind == "parameter changed":
            expected -= {"explain", "report"}
        if kind == "number out of range":
            expected = with_inputs - {"extract", "index"}  # images and codes are whole numbers
        if kind == "input of another run":
            expected -= {"extract", "components"}  # they have one input alone
        if kind == "Ray worker killed":
            expected = {"extract", "encode"}
        if kind == "rank killed":
            expected = {"train"}
        assert stages[kind] >= expected, kind


def test_ci_has_every_kind_and_every_stage_several_times():
    assert {fault.kind for fault in IN_CI} == set(KINDS)
    found = Counter(fault.stage for fault in IN_CI)
    assert min(found[stage] for stage in STAGES) >= 5, found


def test_sample_is_spread_and_always_the_same(monkeypatch):
    monkeypatch.setattr("faults.FAULTS", [])
    cases = [(stage, number) for stage in STAGES for number in range(4)]
    once, again = (faults("kill at random", cases, ci=len(STAGES)) for _ in range(2))
    assert [case.id for case in once] == [f"{stage}-{number}" for stage, number in cases]
    chosen = [case.values[0] for case in once if not any(mark.name == "nightly" for mark in case.marks)]
    assert chosen == list(STAGES)
    assert [[mark.name for mark in case.marks] for case in once] == [[m.name for m in case.marks] for case in again]


RECORD = """<testsuites><testsuite>
<testcase name="a"><properties><property name="fault" value="SIGINT|train|stopped"/></properties></testcase>
<testcase name="b"><properties><property name="fault" value="SIGINT|mine|stopped"/></properties></testcase>
<testcase name="c"/>{}
</testsuite></testsuites>"""
FAILED = """<testcase name="d"><properties><property name="fault" value="SIGINT|mine|died"/></properties>
<failure message="half-written"/></testcase>"""


def test_table(tmp_path: Path):
    (tmp_path / "record.xml").write_text(RECORD.format(""))
    text = fault_table.tables(fault_table.read(tmp_path / "record.xml"))
    assert text.startswith("2 faults, none lost.\n")
    assert "| SIGINT | just before a change of the disk | 2 |  | 2 |  |  |  |" in text
    assert "| train | The hashing network | 1 |  | 1 |" in text and "SIGTERM" not in text


def test_lost_fault_ends_the_table(tmp_path: Path):
    (tmp_path / "record.xml").write_text(RECORD.format(FAILED))
    with pytest.raises(SystemExit, match="lost: d"):
        fault_table.read(tmp_path / "record.xml")
