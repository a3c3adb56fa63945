"""``dvc.yaml`` says of each stage exactly what its code reads, imports and writes."""

import ast
import importlib
import subprocess
from pathlib import Path

import pytest
import yaml
from pipeline_dependencies import (
    ROOT,
    attributes_read,
    code_dependencies,
    code_files,
    imported_modules,
    parameter_fields,
    tree_of,
)
from stage_runner import StageRunner, inputs, leftovers, link, outputs, pipeline, prepare

from stages.__main__ import STAGES

PIPELINE = pipeline()["stages"]
every_stage = pytest.mark.parametrize("stage", STAGES)

#: What stages depend on beside the outputs of others and their code.
OTHER_INPUTS = {
    "weights": {"stages/scenes/clip/scenes-clip.json", "stages/scenes/clip/scenes-clip.safetensors"},
    "extract": {"requirements.lock"},
    "mine": {"${concepts.vocabulary}"},
    "report": {"stages/report/page.html", "stages/report/published.json", "stages/report/style.css"},
}


def config(stage):
    return importlib.import_module(f"stages.{stage}.config").Params


def options(stage, kind):
    """The entries of ``outs`` or ``metrics`` with their options."""
    entries = PIPELINE[stage].get(kind, [])
    return {path: settings for entry in entries for path, settings in
            ({entry: {}} if isinstance(entry, str) else entry).items()}  # fmt: skip


def test_stages_are_those_of_the_command_line():
    assert tuple(PIPELINE) == STAGES


@every_stage
def test_command(stage):
    assert PIPELINE[stage]["cmd"] == f"python -m stages {stage}"
    assert PIPELINE[stage]["desc"]
    assert not PIPELINE[stage].keys() - {"cmd", "desc", "deps", "params", "outs", "metrics"}


# ---- dependencies


@every_stage
def test_dependencies_are_the_inputs_and_the_imported_modules(stage):
    deps = PIPELINE[stage]["deps"]
    assert len(deps) == len(set(deps))
    assert set(deps) - set(inputs(stage)) - OTHER_INPUTS.get(stage, set()) == code_dependencies(stage)
    assert OTHER_INPUTS.get(stage, set()) <= set(deps)
    for path in code_dependencies(stage):
        assert (ROOT / path).is_file()


@every_stage
def test_no_stage_imports_what_this_test_cannot_follow(stage):
    for file in code_files(stage):
        source = file.read_text(encoding="utf-8")
        assert "import_module" not in source and "__import__" not in source, file


def test_import_walk_follows_every_form(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        "import stages.codes\nfrom stages import features\nfrom stages.mine.concepts import denoise\nimport numpy\n"
        "def later():\n    from stages.evaluate import plots as p, reports\n"
    )
    names = {path.relative_to(ROOT).as_posix() for path in imported_modules(module)}
    assert names == {"stages/codes.py", "stages/features.py", "stages/mine/concepts.py", "stages/evaluate/plots.py",
                     "stages/evaluate/reports.py"}  # fmt: skip
    for unseen in ("from . import codes", "from stages.codes import *"):
        module.write_text(unseen)
        with pytest.raises(ValueError, match="line 1"):
            imported_modules(module)


def test_packages_hold_a_docstring_and_nothing_else():
    """So a package's own file need not be a dependency of those who import its modules.

    The public name of ``stages.search``, which is no stage, is the exception.
    """
    for file in {*(ROOT / "stages").rglob("__init__.py")} - {ROOT / "stages" / "search" / "__init__.py"}:
        body = tree_of(file).body
        assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value.value, str), file


def test_data_files_of_the_package_are_dependencies():
    """All but other vocabularies, which are one when they are chosen, and what the page has, which is no stage."""
    kinds = {".json", ".safetensors", ".txt", ".npz", ".csv", ".html", ".css"}
    files = {file.relative_to(ROOT).as_posix() for file in (ROOT / "stages").rglob("*") if file.suffix in kinds}
    deps = {path for stage in PIPELINE.values() for path in stage["deps"]}
    training_record = {file for file in files if file.startswith("stages/scenes/clip/training")}
    vocabularies = {file for file in files if file.startswith("stages/mine/vocabularies/")}
    page = {file for file in files if file.startswith("stages/serve/")}
    assert files - training_record - vocabularies - page <= deps
    assert yaml.safe_load((ROOT / "params.yaml").read_text())["concepts"]["vocabulary"] in vocabularies


def test_order_of_the_stages_is_that_of_the_data():
    made: set[str] = set()
    for stage in STAGES:
        assert set(inputs(stage)) <= made
        made |= set(outputs(stage))


@pytest.mark.slow
@every_stage
def test_stage_needs_nothing_but_its_declared_inputs(stage, tmp_path, tiny_run: Path, run_stages: StageRunner):
    """With only these it makes exactly what it declares; that it needs each of them, test_damage.py tells."""
    directory = prepare(tmp_path / "run")
    link(inputs(stage), tiny_run, directory)
    before = {path.relative_to(directory).as_posix() for path in directory.rglob("*")}
    result = run_stages(directory, stage).check()
    assert result.stderr == ""
    made = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()} - before
    made.remove(f"reports/timings/{stage}.json")  # of this machine, and no output
    for path in outputs(stage):
        assert (directory / path).exists(), path
    assert [path for path in made if not any(path == out or path.startswith(f"{out}/") for out in outputs(stage))] == []
    assert leftovers(directory) == []


# ---- parameters


@every_stage
def test_params_are_the_fields_of_the_config(stage):
    assert PIPELINE[stage].get("params", []) == list(config(stage).model_fields)


@every_stage
def test_every_parameter_is_read(stage):
    files = [file for file in code_files(stage) if file.name != "config.py"]
    read = set().union(*map(attributes_read, files))
    unread = [path for path, name in parameter_fields(config(stage)) if name not in read]
    assert unread == []


def test_params_yaml_has_every_key_and_no_other():
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))

    def keys(section, prefix=""):
        for name, value in section.items():
            yield f"{prefix}{name}"
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{name}.")

    known = {path for stage in STAGES for path, _ in parameter_fields(config(stage))}
    assert sorted(keys(values)) == sorted(known)


def test_params_yaml_has_block_lists():
    """An ``exp run -S`` would reflow inline ones."""
    events = yaml.parse((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert not any(event.flow_style for event in events if isinstance(event, yaml.CollectionStartEvent))


# ---- outputs


def test_outputs_do_not_overlap():
    paths = [Path(path) for stage in STAGES for path in outputs(stage)]
    assert len(paths) == len(set(paths))
    assert not any(a in b.parents for a in paths for b in paths)


@every_stage
def test_only_small_final_reports_are_outside_the_cache(stage):
    """A stage with an uncached output is never restored from the run cache."""
    uncached = {path for kind in ("outs", "metrics") for path, settings in options(stage, kind).items()
                if settings.get("cache", True) is False}  # fmt: skip
    if stage not in ("baselines", "evaluate", "explain", "report"):
        assert not uncached
    assert all(path.startswith("reports/") and path.endswith((".json", ".csv", ".md")) for path in uncached)
    settings = [entry for kind in ("outs", "metrics") for entry in options(stage, kind).values()]
    assert all(entry.keys() <= {"cache"} for entry in settings)  # no persist, no push: false, no checkpoint


def test_plots_are_outputs():
    made = [path for stage in STAGES for path in outputs(stage)]
    for plot in pipeline()["plots"]:
        for description in plot.values():
            for path in description["y"]:
                assert any(path == out or path.startswith(f"{out}/") for out in made), path


def test_static_gitignore_covers_what_dvc_keeps():
    """DVC removes the entries that it wrote itself when a stage fails."""
    cached = [path for stage in STAGES for kind in ("outs", "metrics") for path, settings in
              options(stage, kind).items() if settings.get("cache", True)]  # fmt: skip
    cached.append("reports/timings/train.json")  # of this machine
    result = subprocess.run(["git", "check-ignore", "--no-index", *cached], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == cached
    tracked = subprocess.run(["git", "ls-files", "--", "*.gitignore"], cwd=ROOT, capture_output=True, text=True)
    assert {"data/.gitignore", "models/.gitignore", "reports/.gitignore"} <= set(tracked.stdout.split())


def test_dvc_settings():
    ignored = (ROOT / ".dvcignore").read_text(encoding="utf-8").split()
    assert {"__pycache__/", ".resume/"} <= set(ignored)
    settings = (ROOT / ".dvc" / "config").read_text(encoding="utf-8")
    assert "analytics = false" in settings and "remote" not in settings
