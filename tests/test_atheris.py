"""A minute of Atheris on each reader of strangers' bytes, see atheris_parsers.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stage_runner import ROOT

#: Seconds of each.
TIME = 60


@pytest.mark.nightly
@pytest.mark.parametrize("target", ["image", "archive", "list", "vocabulary", "params"])
def test_no_bytes_end_in_a_traceback(tmp_path: Path, target: str) -> None:
    pytest.importorskip("atheris")
    done = subprocess.run(
        [sys.executable, ROOT / "tests/atheris_parsers.py", target, f"-max_total_time={TIME}", "-seed=1"], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}, capture_output=True, text=True,
        errors="replace", timeout=10 * TIME,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(tmp_path.glob("crash-*")) == []
