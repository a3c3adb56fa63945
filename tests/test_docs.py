"""Commands, keys, code and tables of the documentation are those of the project; what is short is executed."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import h5py
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from picture import picture
from pipeline_dependencies import imported_names, tree_of
from stage_runner import ROOT, copy, inputs, link, outputs, pipeline

import stages
from stages.__main__ import STAGES, _register, app

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
ARCHITECTURE = (DOCS / "architecture.md").read_text(encoding="utf-8")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())

#: Pages with blocks of Python, and the tests that execute them.
EXECUTED = {"search.md": "test_search.py", "extending.md": "test_extending.py", "distributed.md": "test_sharded.py"}


def commands(page: Path, program: str) -> list[list[str]]:
    """The words after `program` of each such line of the indented blocks of a page."""
    joined = re.sub(r"\\\n\s+", "", page.read_text(encoding="utf-8"))
    lines = re.findall(rf"^    (?:.* \| )?{re.escape(program)} (.*)$", joined, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


STAGE_COMMANDS = {page: commands(page, "python -m stages") for page in PAGES}


@pytest.fixture(scope="module")
def program() -> click.Group:
    """The command line as it is when it runs."""
    if not app.registered_commands or "download" not in {command.name for command in app.registered_commands}:
        for name in STAGES:
            _register(name)
    return typer.main.get_command(app)


@every_page
def test_every_command_of_a_page_is_one_of_the_program(page, program):
    for words in STAGE_COMMANDS[page]:
        name, context = words[0], click.Context(program)
        command = program.get_command(context, name)
        assert command is not None, words
        command.make_context(name, list(words[1:]), parent=context)  # refuses options that there are not


def test_there_are_commands_to_check():
    assert sum(map(len, STAGE_COMMANDS.values())) > 35
    assert {words[0] for found in STAGE_COMMANDS.values() for words in found} >= {"search", "report", "timings"}


@every_page
def test_every_key_of_a_page_is_one_of_the_parameters(page):
    """What looks like ``train.uhscm.alpha`` in backticks, where its first word is a section."""
    parameters = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    sections = {name for name, value in parameters.items() if isinstance(value, dict)}
    for key in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?::[^`]*|=[^`]*)?`", page.read_text(encoding="utf-8")):
        names = key.split(".")
        if names[0] not in sections or names[-1] in ("parquet", "h5", "json", "py", "png", "csv", "npy", "tsv"):
            continue
        value = parameters
        for name in names:
            assert isinstance(value, dict) and name in value, f"{key} is no key of params.yaml"
            value = value[name]


def test_blocks_of_python_are_executed_somewhere():
    found = {page.name for page in PAGES if re.search(r"^```python", page.read_text(encoding="utf-8"), re.MULTILINE)}
    assert found == set(EXECUTED)
    for page, test in EXECUTED.items():
        assert page in (ROOT / "tests" / test).read_text(encoding="utf-8")


def test_examples_in_docstrings():
    names = [module.name for module in pkgutil.walk_packages(stages.__path__, "stages.")]
    files = {name: ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names}
    with_examples = [name for name, file in files.items() if file.exists() and ">>> " in file.read_text("utf-8")]
    tried = sum(doctest.testmod(importlib.import_module(name), raise_on_error=True).attempted for name in with_examples)
    assert tried >= 8


# ---- execution


@pytest.fixture(scope="module")
def photographed(tmp_path_factory, tiny_run) -> Path:
    """A project after a tiny run, with the photographs that the pages speak of."""
    directory = tmp_path_factory.mktemp("project")
    made = [path for stage in STAGES for path in outputs(stage)]
    link([path for path in made if path != "data/index"], tiny_run, directory)
    copy(["data/index", "params.yaml", "reports/timings"], tiny_run, directory)
    (directory / "stages").symlink_to(ROOT / "stages")
    (directory / "photos").mkdir()
    for number, name in enumerate(("photo.jpg", "a.jpg", "one.jpg", "two.jpg", "photos/x.jpg", "photos/y.jpg")):
        (directory / name).write_bytes(picture(number))
    return directory


#: Commands that need git, a benchmark of minutes or a terminal; their tests are their own.
ELSEWHERE = {"benchmark", "codes", "compare", "serve", *STAGES} - {"index", "encode", "explain", "report"}


def executed() -> list[list[str]]:
    """One command of each name and options, which is nearly all; a pipe's input is not there."""
    found = [words for page in PAGES for words in STAGE_COMMANDS[page]
             if words[0] not in ELSEWHERE and len(words) > 1 and "-" not in words]  # fmt: skip
    kinds = {(words[0], frozenset(word for word in words if word.startswith("--"))): words for words in found}
    return [list(words) for words in kinds.values()]


@pytest.mark.slow
def test_commands_of_the_pages_run(photographed, run_stages):
    """In their order: a network is published before it is used."""
    order = sorted(executed(), key=lambda words: ("--model" in words, "--remove" in words))
    assert len(order) > 15
    for words in order:
        ids = [place for place, word in enumerate(words) if word in ("--id", "--remove")]
        for place in ids:  # of the tiny run
            words[place + 1] = str(pq.read_table(photographed / "data/map.parquet")["id"][ids.index(place)].as_py())
        result = run_stages(photographed, *words)
        assert result.returncode == 0, (words, result.stderr)


@pytest.mark.slow
def test_lines_of_python_run(photographed):
    """``python -c`` of the pages, but for that of the benchmark, whose results are not there."""
    found = [words for page in PAGES for words in commands(page, "python -c")]
    lines = [words[0] for words in found if "benchmark" not in words[0]]
    assert len(lines) >= 2
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=photographed, capture_output=True, text=True)
    assert done.returncode == 0 and "concept" in done.stdout, done.stderr


# ---- architecture


def table(heading: str, number: int = 0) -> list[list[str]]:
    """The rows of a table under a heading."""
    part = re.split(r"^## .*\n", ARCHITECTURE.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    tables = re.findall(r"^\|.*\n\|---.*\n((?:\|.*\n)+)", part, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[number].splitlines()]


def named(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def test_the_table_of_stages_is_that_of_dvc_yaml():
    rows = {row[0].strip("`"): (named(row[1]), named(row[2])) for row in table("Data flow")}
    assert rows == {stage: (set(inputs(stage)), set(outputs(stage))) for stage in pipeline()["stages"]}
    arrows = set(re.findall(r"\|(\w+)\|", ARCHITECTURE.partition("```mermaid")[2].partition("```")[0]))
    assert arrows == set(STAGES) - {"report"}


def test_the_schemas_are_those_of_a_run(tiny_run):
    rows = [row for row in table("Artifacts") if row[0].rstrip("`").endswith((".parquet", ".h5"))]
    assert len(rows) > 8
    for path, said in rows:
        file = next(tiny_run.glob(path.strip("`")))
        if file.suffix == ".h5":
            found: set[str] = set()
            with h5py.File(file) as content:
                content.visititems(lambda name, item, found=found: found.add(name) if hasattr(item, "shape") else None)
        else:
            found = set(pq.read_schema(file).names)
        cutoffs = {name for name in found if re.fullmatch(r"average_precision_at_\d+", name)}
        assert {re.sub(r"_at_10$", "_at_1000", name) for name in named(said)} >= found - cutoffs | cutoffs, path
        assert len(named(said) - {"id"}) >= len(found - {"id"}), path


def test_the_rooms_use_each_other_as_is_said():
    rooms = {path.parent.name for path in (ROOT / "stages").glob("*/__init__.py")}
    rows = {row[0].strip("`"): named(row[1]) for row in table("Rooms")}
    assert set(rows) == rooms
    for room, said in rows.items():
        names = {name for file in (ROOT / "stages" / room).rglob("*.py") for name in imported_names(tree_of(file))}
        used = {name.split(".")[1] for name in names if name.startswith("stages.")} & rooms - {room}
        assert said == used, room


def test_the_places_to_change_something_are_there():
    paths = {name for row in table("Where to change what") for name in named(row[1]) if name.startswith("stages/")}
    assert len(paths) > 15 and all((ROOT / path).exists() for path in paths)
    modules = {name for row in table("Rooms", 1) for name in named(row[0])}
    files = {path.stem for path in (ROOT / "stages").glob("[!_]*.py")}
    assert modules == files
