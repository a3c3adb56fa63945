"""What happens while a stage runs: itself, another parameter, another time."""

import pytest
from disturbed import SMALL, STAGES, outcome_of
from faults import faults
from stage_runner import content, prepare

#: A parameter of each stage that has one.
CHANGED = {
    "download": {"dataset": {"train": 30}}, "weights": {"backbone": {"model": "vgg19"}},
    "extract": {"extract": {"views": 3}}, "mine": {"concepts": {"tau": 2.0}},
    "similarity": {"similarity": {"form": "cosine"}}, "components": {"components": {"top": 3}},
    "train": {"train": {"lr": 0.01}}, "encode": {"device": "cpu"}, "index": {"index": {"thumbnail": 48}},
    "map": {"map": {"images": 30}},
    "baselines": {"evaluate": {"precision_at": [5]}}, "evaluate": {"evaluate": {"precision_at": [7]}},
}  # fmt: skip


@pytest.mark.parametrize(("stage", "over_earlier"), faults(
    "two at once", [(stage, over_earlier) for stage in STAGES for over_earlier in (False, True)], ci=3
))  # fmt: skip
def test_twice_at_once(stage, over_earlier, disturbed, outcome):
    disturbed.start(over_earlier=over_earlier)
    ends = [outcome_of(result) for result in disturbed.run_stages.together(disturbed.directory, stage)]
    assert "finished" in ends
    for path, expected in disturbed.expected.items():
        assert content(disturbed.directory / path) == expected
    disturbed.repeat()
    outcome("finished")


@pytest.mark.parametrize(("stage", "share"), faults(
    "parameter changed", [(stage, share) for stage in CHANGED for share in (0.0, 0.5, 1.0)], ci=3
))  # fmt: skip
def test_parameter_changed_in_the_middle(stage, share, disturbed, outcome):
    """Otherwise DVC would note the outputs of the old value as those of the new one."""
    directory = disturbed.start()
    prepare(directory / "next", SMALL, CHANGED[stage])
    (directory / "next/params.yaml").rename(directory / "params.next.yaml")
    result = disturbed.run(events=True, at_event=1 + round(share * (disturbed.events - 3)), then="params")
    assert outcome_of(result) == "refused"
    assert result.error() == f"params.yaml: changed while {stage} ran; repeat the command"
    disturbed.require_complete()
    prepare(directory, SMALL)
    disturbed.repeat()
    outcome("refused")


@pytest.mark.parametrize(("stage", "seconds"), faults(
    "clock jumps", [(stage, sign) for stage in STAGES for sign in (-365 * 86400, 3650 * 86400)], ci=3
))  # fmt: skip
def test_clock_jumps(stage, seconds, disturbed, outcome):
    disturbed.start(over_earlier=True)
    result = disturbed.run(events=True, at_event=1 + disturbed.events // 2, then=f"clock{seconds}")
    assert outcome_of(result) == "finished"
    disturbed.require_expected()
    disturbed.judge()
    outcome("finished")
