"""A stage that is killed at any point leaves no half-written artifact, and the next run is as if nothing had been."""

import random

import pyarrow.parquet as pq
import pytest
from disturbed import SMALL, STAGES, Disturbed, outcome_of
from faults import faults
from stage_runner import content, leftovers, outputs, prepare

#: About as many kills of each stage as it changes the disk; training does so at every step of its curves, 600 times.
WRITES = {
    "download": 64, "weights": 50, "extract": 62, "mine": 24, "similarity": 16, "components": 77, "train": 64,
    "encode": 48, "index": 44, "baselines": 37, "evaluate": 73, "explain": 55, "map": 19, "report": 24,
}  # fmt: skip


def shares(count: int) -> list[float]:
    """Where in its run a stage is disturbed: evenly from its first (0) to its last (1) change of the disk."""
    return [round(number / (count - 1), 3) for number in range(count)]


def at(share: float, total: int) -> int:
    """The number, from 1, of the change at this share of `total`."""
    return 1 + round(share * (total - 1))


def sample(total: int, most: int) -> list[int]:
    """1 to `total`, or a seeded sample of it that has the first and the last."""
    if total <= most:
        return list(range(1, total + 1))
    return sorted({1, total, *random.Random(total).sample(range(2, total), most - 2)})


@pytest.mark.parametrize(("stage", "share"), faults(
    "kill before a write", [(stage, share) for stage in STAGES for share in shares(WRITES[stage])], ci=13
))  # fmt: skip
def test_killed_before_a_write(stage, share, disturbed, outcome):
    number = at(share, disturbed.events)
    disturbed.start(over_earlier=number % 3 > 0)
    result = disturbed.run(events=True, at_event=number)
    assert result.returncode == -9, f"{number} of {disturbed.events}: {result}"
    disturbed.judge()
    outcome("died")


@pytest.mark.parametrize(
    ("stage", "number"), faults("kill in a write", [(stage, n) for stage in STAGES for n in range(4)], ci=5)
)
def test_killed_in_a_write(stage, number, disturbed, outcome):
    """The kernel ends the process in the write (of whichever library) that would exceed the limit."""
    sizes = [len(data) for path in outputs(stage) for data in content(disturbed.now / path).values() if len(data) > 1]
    generator = random.Random(f"{stage} {number}")
    limit = generator.randrange(1, generator.choice(sizes)) if number else 1
    disturbed.start(over_earlier=True)
    result = disturbed.run(kill_at_size=limit)
    assert result.returncode in (0, -25), result  # SIGXFSZ; 0: what is written as one piece is smaller
    disturbed.judge()
    outcome(outcome_of(result))


@pytest.mark.parametrize(
    ("stage", "number"), faults("kill at random", [(stage, n) for stage in STAGES for n in range(4)], ci=5)
)
def test_killed_at_random(stage, number, disturbed, outcome):
    seconds = disturbed.seconds * random.Random(f"{stage} {number}").uniform(0.05, 0.9)
    disturbed.start(over_earlier=number % 2 == 0)
    result = disturbed.run(kill_after=seconds)
    assert result.returncode in (0, -14), result  # SIGALRM, which nobody catches; 0: it was faster than the first time
    disturbed.judge()
    outcome(outcome_of(result))


@pytest.mark.parametrize(
    ("stage", "share"), faults("SIGTERM", [(stage, share) for stage in STAGES for share in shares(8)], ci=5)
)
def test_terminated(stage, share, disturbed, outcome):
    asked_to_stop(disturbed, "SIGTERM", share, outcome)


@pytest.mark.parametrize(
    ("stage", "share"), faults("SIGINT", [(stage, share) for stage in STAGES for share in shares(8)], ci=5)
)
def test_interrupted(stage, share, disturbed, outcome):
    asked_to_stop(disturbed, "SIGINT", share, outcome)


def asked_to_stop(disturbed, signal, share, outcome):
    number = at(share, disturbed.events)
    disturbed.start(over_earlier=number % 2 == 0)
    came = outcome_of(disturbed.run(events=True, at_event=number, then=signal))
    assert came == "stopped"
    assert not [name for name in leftovers(disturbed.directory) if not name.startswith(".resume/")]
    disturbed.judge()
    outcome(came)


# ---- what was done is not done again


@pytest.mark.parametrize("stage", ["train"])
def test_training_goes_on_at_its_last_checkpoint(disturbed):
    epochs = SMALL["train"]["epochs"]
    count = {"count": "stages.train.batches:batches", "events": True}  # once an epoch
    disturbed.start()
    whole = disturbed.run(**count).check()
    assert whole.calls == epochs
    saved_work = 0
    for number in sample(whole.events, 12):
        disturbed.start()
        killed = disturbed.run(**count, at_event=number)
        was_done = content(disturbed.directory / "models/hashnet") is not None  # only the tidying up was missing
        resumed = disturbed.run(**count).check()
        # One checkpoint an epoch: no more than one is done twice.
        assert was_done or killed.calls + resumed.calls <= epochs + 1
        saved_work += resumed.calls < epochs
        disturbed.judge()
    assert saved_work > 3


@pytest.mark.parametrize("stage", ["extract"])
def test_extraction_goes_on_at_its_last_row_group(disturbed, tmp_path):
    n_images, rows = sum(SMALL["dataset"][split] for split in ("queries", "database")), 10
    images = tmp_path / "images"
    images.mkdir()
    for file in (disturbed.now / "data/images").iterdir():
        pq.write_table(pq.read_table(file), images / file.name, row_group_size=rows)

    def started() -> Disturbed:
        directory = disturbed.start()
        (directory / "data/images").unlink()
        (directory / "data/images").symlink_to(images)
        return disturbed

    count = {"count": "stages.decoding:decode", "events": True}
    whole = started().run(**count).check()
    assert whole.calls == n_images
    expected = content(disturbed.directory / "data/features.h5")
    saved_work = 0
    for number in sample(whole.events, 6):
        killed = started().run(**count, at_event=number)
        was_done = content(disturbed.directory / "data/features.h5") is not None
        resumed = disturbed.run(**count).check()
        assert was_done or killed.calls + resumed.calls <= n_images + rows
        saved_work += resumed.calls < n_images
        assert content(disturbed.directory / "data/features.h5") == expected
        assert leftovers(disturbed.directory) == []
    assert saved_work > 1


@pytest.mark.parametrize("stage", ["train"])
def test_work_of_other_parameters_is_not_resumed(disturbed):
    """As with DVC's ``persist``, a training that begins from another one's checkpoint would not be reproducible."""
    count = {"count": "stages.train.batches:batches", "events": True}
    directory = disturbed.start()
    prepare(directory, SMALL, {"train": {"lr": 0.1}})
    total = disturbed.run(**count).check().events
    directory = disturbed.start()
    prepare(directory, SMALL, {"train": {"lr": 0.1}})
    disturbed.run(**count, at_event=total // 2)
    assert leftovers(directory) != []
    prepare(directory, SMALL)
    assert disturbed.run(**count).check().calls == SMALL["train"]["epochs"]
    disturbed.judge()
