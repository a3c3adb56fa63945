"""Artifacts that are missing, damaged or others than they should be: one clear line, and nothing half-written."""

import random
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from disturbed import SMALL, STAGES, Disturbed, outcome_of
from faults import faults
from stage_runner import READ_WITH, content, inputs, leftovers, nothing_made, outputs, pipeline, prepare

from stages.tables import fixed_size_lists, matrix
from stages.verify import LOCK, digest

#: (stage, input).
READ = [(stage, path) for stage in STAGES for path in inputs(stage)]


def producer(path):
    return next(stage for stage in STAGES if path in outputs(stage))


def files_of(path):
    """The files of an artifact that hold something."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [file for file in files if file.stat().st_size]


def reading(disturbed: Disturbed, path: str):
    """The directory of a run that will read its input at `path`, which is a copy, and that copy."""
    directory = disturbed.start(copied=path)
    prepare(directory, SMALL, READ_WITH.get((disturbed.stage, path), {}))
    return directory, directory / path


def refused(disturbed: Disturbed, path: str) -> str:
    """What the stage says of its input at `path`; nothing is made, and with the right input all is well."""
    message = disturbed.run().error()
    assert message.startswith(path) and f"`dvc repro {producer(path)}`" in message, message
    assert nothing_made(disturbed.directory, disturbed.stage)
    mended(disturbed, path)
    return message


def mended(disturbed: Disturbed, path: str) -> None:
    """With the right input the next run makes what an undisturbed one makes."""
    target = disturbed.directory / path
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    target.symlink_to(disturbed.now / path)
    prepare(disturbed.directory, SMALL)
    disturbed.judge()


@pytest.mark.parametrize(("stage", "path"), faults("input missing", READ, ci=len(READ)))
def test_missing(stage, path, disturbed, outcome):
    """So what dvc.yaml declares is needed, too."""
    directory, target = reading(disturbed, path)
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    message = refused(disturbed, path)
    assert "not found" in message or "no image shards" in message
    assert leftovers(directory) == []
    outcome("refused")


def damaged(disturbed, path, how, outcome):
    _, target = reading(disturbed, path)
    generator = random.Random(f"{disturbed.stage} {path}")
    for file in files_of(target):
        file.write_bytes(how(file.read_bytes(), generator))
    refused(disturbed, path)
    outcome("refused")


@pytest.mark.parametrize(("stage", "path"), faults("input empty", READ, ci=7))
def test_empty(stage, path, disturbed, outcome):
    damaged(disturbed, path, lambda data, _: b"", outcome)


# The beginning of a table is a table: only its digest tells, see below.
@pytest.mark.parametrize(
    ("stage", "path"), faults("input cut", [case for case in READ if not case[1].endswith(".csv")], ci=7)
)
def test_cut(stage, path, disturbed, outcome):
    damaged(disturbed, path, lambda data, _: data[: len(data) // 2], outcome)


@pytest.mark.parametrize(("stage", "path"), faults("input noise", READ, ci=7))
def test_noise(stage, path, disturbed, outcome):
    damaged(disturbed, path, lambda data, generator: generator.randbytes(len(data)), outcome)


@pytest.mark.parametrize(("stage", "path"), faults("input of another kind", READ, ci=7))
def test_another_kind(stage, path, disturbed, outcome):
    """An artifact of the same format with other content, as of an earlier version."""
    _, target = reading(disturbed, path)
    concepts = disturbed.now / "data/concepts.parquet"
    if path.endswith(".h5"):
        with h5py.File(target, "w") as file:
            file["something"] = 1
    elif path.endswith(".parquet"):
        pq.write_table(pq.read_table(concepts).select(["prompt"]), target)
    elif path.endswith(".json"):
        target.write_text('{"something": 1}')
    elif path.endswith(".csv"):
        target.write_text("something\n1\n")
    else:
        shutil.rmtree(target)
        target.mkdir()
        (target / "config.json").write_text('{"something": 1}')
        shutil.copy(concepts, target / "images-00000.parquet")
    refused(disturbed, path)
    outcome("refused")


# ---- damage that the format may not show


def floats_of(path):
    """Names of what holds floating-point numbers in an artifact."""
    if path.suffix == ".parquet":
        schema = pq.read_schema(path)
        return [field.name for field in schema if "float" in str(field.type) or "double" in str(field.type)]
    names = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: names.append(name) if getattr(item, "dtype", None) in FLOATS else None)
    return names


def put(path, name, generator):
    """Replace one of the numbers called `name`."""

    def spoilt(numbers):
        largest = np.finfo(numbers.dtype).max
        numbers.flat[generator.randrange(numbers.size)] = generator.choice([np.nan, np.inf, largest, -largest])
        return numbers

    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file[name][...] = spoilt(file[name][...])
        return
    table = pq.read_table(path)
    column, place = table[name].combine_chunks(), table.schema.get_field_index(name)
    if pa.types.is_floating(column.type):
        column = pa.array(spoilt(column.to_numpy().copy()))
    else:
        column = fixed_size_lists(spoilt(matrix(table, name).copy()))
    pq.write_table(table.set_column(place, table.schema.field(place), column), path, row_group_size=len(table))


#: (stage, input) of inputs that hold floating-point numbers.
FLOATS = (np.float16, np.float32, np.float64)
NUMBERS = [case for case in READ if case[1] in (
    "data/features.h5", "data/components.h5", "data/concepts.parquet", "data/concept_distribution.parquet",
    "data/similarity.parquet", "data/map.parquet", "reports/query_precision.parquet",
    "reports/baselines_query_precision.parquet",
)]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "path", "number"),
    faults("number out of range", [(*case, number) for case in NUMBERS for number in range(8)], ci=4),
)
def test_number_out_of_range(stage, path, number, disturbed, outcome):
    """What the numbers of an artifact have to be is checked where they are read: none leads to a warning or worse."""
    directory, target = reading(disturbed, path)
    generator = random.Random(f"{stage} {path} {number}")
    put(target, generator.choice(floats_of(target)), generator)
    came = outcome_of(result := disturbed.run())
    if came == "refused":
        assert path in result.stderr
        assert nothing_made(directory, stage)
    else:
        found, expected = {made: content(directory / made) for made in disturbed.expected}, disturbed.expected
        if (stage, path) in READ_WITH:  # then the parameters are others than those of the undisturbed run
            target.unlink()
            target.symlink_to(disturbed.now / path)
            disturbed.run().check()
            expected = {made: content(directory / made) for made in expected}
        came = "finished" if found == expected else "unnoticed"
        disturbed.complete = {made: (content(directory / made),) for made in disturbed.complete}
    mended(disturbed, path)
    outcome(came)


def overwritten(data, generator):
    half = len(data) // 2
    return data[:half] + generator.randbytes(min(64, len(data) - half)) + data[half + 64 :]


def flipped(data, generator):
    place = generator.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :]


def write_lock(directory):
    """Note the artifacts of `directory`, as DVC would."""
    noted = {
        stage: {"outs": [{"path": path, "md5": digest(directory / path)} for path in outputs(stage)
                         if (directory / path).exists()]}
        for stage in pipeline()["stages"]
    }  # fmt: skip
    (directory / LOCK).write_text(yaml.safe_dump({"schema": "2.0", "stages": noted}))


def noticed_when_asked(disturbed, path, how, number, outcome):
    """`verify` tells; unasked a stage may not notice, but it neither crashes nor leaves anything half-written."""
    directory = disturbed.start(copied=path)
    target = directory / path
    write_lock(directory)
    assert disturbed.run_stages(directory, "verify", path).check().stdout == "1 artifact as noted in dvc.lock\n"
    generator = random.Random(f"{disturbed.stage} {path} {number}")
    file = generator.choice(files_of(target))
    file.write_bytes(how(file.read_bytes(), generator))
    message = disturbed.run_stages(directory, "verify", path).error()
    assert message.startswith(f"{path}: its content is not what dvc.lock notes") and producer(path) in message
    (directory / LOCK).unlink()

    result = disturbed.run()
    came = outcome_of(result)
    if came == "refused":
        assert path in result.stderr  # at its beginning, or as what another artifact does not belong to
        assert nothing_made(directory, disturbed.stage)
    elif any(content(directory / made) != expected for made, expected in disturbed.expected.items()):
        came = "unnoticed"
        assert all((directory / made).exists() for made in disturbed.expected)
        disturbed.complete = {made: (content(directory / made),) for made in disturbed.complete}
    mended(disturbed, path)
    outcome(came)


@pytest.mark.parametrize(("stage", "path"), faults("input overwritten", READ, ci=5))
def test_overwritten(stage, path, disturbed, outcome):
    noticed_when_asked(disturbed, path, overwritten, 0, outcome)


@pytest.mark.parametrize(
    ("stage", "path", "number"), faults("bit flipped", [(*case, number) for case in READ for number in range(2)], ci=5)
)
def test_flipped(stage, path, number, disturbed, outcome):
    noticed_when_asked(disturbed, path, flipped, number, outcome)
