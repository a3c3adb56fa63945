"""What a stage took: noted beside its outputs, and never in their way."""

import json

import pytest
from stage_runner import inputs, link, prepare

from stages.artifacts import DATASET, read_json, write_json
from stages.timings import TIMINGS, read_timings, timed


def test_a_run_is_noted(workplace):
    write_json(DATASET, {"digest": "abc"})
    with timed("train", {"bits": 32}):
        held = bytearray(50 * 2**20)
        held[::4096] = b"x" * len(held[::4096])
    (found,) = read_timings()
    assert (found.stage, found.dataset, found.params) == ("train", "abc", {"bits": 32})
    assert 0 < found.seconds < 60 and 0 <= found.processor_seconds < 60
    assert 50 * 2**20 < found.peak_bytes < 2**40


def test_a_failure_is_not_noted(workplace):
    with timed("train", {"bits": 32}):
        pass
    before = (TIMINGS / "train.json").read_bytes()
    with pytest.raises(KeyboardInterrupt), timed("train", {"bits": 64}):
        raise KeyboardInterrupt
    assert (TIMINGS / "train.json").read_bytes() == before


def test_what_cannot_be_noted_is_left_out(workplace):
    TIMINGS.parent.mkdir()
    TIMINGS.write_text("in the way")
    with timed("train", {}):
        pass
    assert TIMINGS.read_text() == "in the way" and read_timings() == []


def test_notes_are_in_the_order_of_the_stages(workplace):
    for stage in ("unheard-of", "encode", "download", "baselines"):
        with timed(stage, {}):
            pass
    assert [timing.stage for timing in read_timings()] == ["download", "encode", "baselines", "unheard-of"]
    assert read_timings()[0].dataset == ""
    (TIMINGS / ".train.json.1.abc.tmp.json").write_text("")  # of a run that was killed
    assert len(read_timings()) == 4


def test_notes_are_printed(workplace, run_stages):
    assert "no stage has run here" in run_stages(workplace, "timings").error()
    with timed("train", {}):
        pass
    record = TIMINGS / "train.json"
    write_json(record, read_json(record) | {"seconds": 3725.2, "peak_bytes": 300 * 2**20, "worker_peak_bytes": 0})
    header, line = run_stages(workplace, "timings").check().stdout.splitlines()
    assert header.startswith("stage") and line.split()[:5] == ["train", "1", "h", "02", "min"] and "300 MiB" in line


def test_the_command_line_notes_each_stage(tmp_path, tiny_run, run_stages):
    directory = prepare(tmp_path / "run")
    link(inputs("similarity"), tiny_run, directory)
    run_stages(directory, "similarity").check()
    noted = json.loads((directory / TIMINGS / "similarity.json").read_text())
    assert noted["params"].keys() == {"similarity"}
    assert {path.stem for path in (tiny_run / TIMINGS).iterdir()} >= {"download", "train", "evaluate", "report"}
