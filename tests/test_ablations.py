"""``docs/ablations.md``: each command of its tables is one that the stages take, and changes what it says."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from test_data_cards import DOCS, ROOT, changed_params, overrides, require_parse

from stages.params import read_params_file

PAGE = (DOCS / "ablations.md").read_text(encoding="utf-8").partition("\n## Results")[0]
COMMANDS = re.findall(r"\| `(dvc exp run .*)` \|$", PAGE, re.MULTILINE)


def at(values: dict[str, Any], key: str) -> object:
    for name in key.split("."):
        values = values[name]
    return values


def test_every_row_has_a_command() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "| command |" not in line]
    assert len(rows) == len(COMMANDS) == len(set(COMMANDS)) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses_and_changes_each_key_that_it_names(command: str, tmp_path: Path) -> None:
    values = overrides(shlex.split(command))
    changed, before = changed_params(values, tmp_path), read_params_file(ROOT / "params.yaml")
    require_parse(changed)
    for key in (value.partition("=")[0] for value in values):
        assert key == "method" or at(changed, key) != at(before, key), key
