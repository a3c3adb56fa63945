"""The stage ``download``: shards, data set description, list of skipped images; unreadable input; disk; kills."""

import csv
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cifar_archive import batches, write_archive
from picture import picture

from stages.artifacts import DATASET, IMAGES, PROVENANCE_KEY, RESUME
from stages.download import cifar10, shards, stage
from stages.download.config import Params
from stages.download.source import Record, Source
from stages.download.stage import SKIPPED, run
from stages.errors import InputError
from stages.images import SCHEMA, ImageShards, decode, read_dataset, read_row_group
from stages.params import parse
from stages.scenes.catalogue import SHOWN
from stages.scenes.render import render_scene

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
TINY = {"queries": 20, "database": 80, "train": 40}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch) -> Path:
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


def params(dataset: str, **data: Any) -> Params:
    return parse(Params, {"dataset": dataset, "data": data})


def images(directory: Path = IMAGES) -> list[bytes]:
    return [data for file, group in ImageShards(directory).row_groups() for _, _, data in read_row_group(file, group)]


def skipped() -> list[list[str]]:
    with open(SKIPPED, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def fill(root: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def pictures(n: int, classes: int = 2) -> dict[str, bytes]:
    return {f"class {index % classes}/{index:03d}.png": picture(index) for index in range(n)}


def nothing_left_over() -> bool:
    return not list(RESUME.glob("download-*")) and not list(Path("data").glob(".*"))


# ---- what is written


def test_scenes():
    run(params("scenes", seed=3, **TINY))
    dataset, parts = read_dataset(), ImageShards()
    assert dataset.counts == {"images": 100, "query": 20, "database": 80, "train": 40}
    assert dataset.class_names == list(SHOWN) and dataset.protocol == "scenes" and dataset.cutoffs == [1000]
    labels = parts.labels(len(SHOWN))
    for index, data in enumerate(images()):
        scene = render_scene(3, index)
        assert (np.asarray(decode(data)) == scene.pixels).all()
        assert {SHOWN[label] for label in np.flatnonzero(labels[index])} == set(scene.labels)
    assert skipped() == [["source", "reason"]]
    assert nothing_left_over()


def test_scenes_are_the_same_with_worker_processes(monkeypatch):
    from stages.download import scenes

    alone = list(scenes.scenes(1, 230).records)
    monkeypatch.setattr(scenes, "WORTH_WORKERS", 0)
    assert list(scenes.scenes(1, 230).records) == alone


def test_format_and_metadata():
    run(params("scenes", **TINY))
    dataset, (file,) = read_dataset(), ImageShards().files
    schema = pq.read_schema(file)
    assert schema.equals(SCHEMA)
    assert json.loads(schema.metadata[b"dataset"]) == json.loads(DATASET.read_text())
    provenance = json.loads(schema.metadata[PROVENANCE_KEY.encode()])
    assert provenance["dataset"] == dataset.digest and provenance["params"]["data"]["queries"] == 20
    hub = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(hub) == SCHEMA.names and hub["labels"]["feature"]["names"] == list(SHOWN)
    table = pq.read_table(file)
    assert table["id"].to_pylist() == list(range(100))
    query, database, train = (table[f"is_{name}"].to_numpy() for name in ("query", "database", "train"))
    assert not (query & database).any() and not (train & ~database).any()


def test_pixels_pass_through_and_labels_stay_with_them(tmp_path):
    contents = pictures(60, 3) | {"class 1/photo.jpg": picture(99, kind="JPEG")}
    run(params("folder", path=str(fill(tmp_path / "set", contents)), seed=5))
    table = pq.read_table(IMAGES / "images-00000.parquet")
    for row in table.to_pylist():
        assert row["image"]["bytes"] == contents[row["image"]["path"]]
        assert row["labels"] == [int(row["image"]["path"][6])]
    assert len(table) == 61 and read_dataset().protocol == "holdout" and read_dataset().counts["query"] == 6


def test_row_groups_and_shards_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP_ROWS", 7)
    monkeypatch.setattr(shards, "GROUP_BYTES", 1000)
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    contents = pictures(40) | {f"class 0/big {index}.png": picture(index, 24) for index in range(3)}
    contents |= {f"class 0/x{index}.png": b"broken" for index in range(3)}
    run(params("folder", path=str(fill(tmp_path / "set", contents)), max_skipped=0.1))
    files = ImageShards().files
    assert len(files) > 3 and [file.name for file in files] == [f"images-{i:05d}.parquet" for i in range(len(files))]
    for file in files:
        metadata = pq.read_metadata(file)
        assert all(metadata.row_group(group).num_rows <= 7 for group in range(metadata.num_row_groups))
        pixels = pq.read_table(file)["image"].combine_chunks().field("bytes")
        assert len(pixels) == 1 or sum(len(data.as_py()) for data in pixels) <= 3000
    assert images() == [contents[name] for name in sorted(contents) if contents[name] != b"broken"]
    assert ImageShards().columns(["id"])["id"].to_pylist() == list(range(43))


def test_two_runs_are_identical_to_the_byte(tmp_path, monkeypatch):
    def content() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in (*ImageShards().files, DATASET, SKIPPED)}

    path = str(fill(tmp_path / "set", pictures(50) | {"class 0/x.png": b"broken"}))
    run(params("folder", path=path, max_skipped=0.1))
    first = content()
    run(params("folder", path=path, max_skipped=0.1))
    assert content() == first


def test_digest_covers_pixels_labels_classes_and_splits(tmp_path):
    def digest(contents: dict[str, bytes], **data: Any) -> str:
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        run(params("folder", path=str(fill(tmp_path / "set", contents)), **data))
        return read_dataset().digest

    base = pictures(20)
    other = {
        "pixels": base | {"class 0/000.png": picture(77)},
        "labels": {name.replace("class 0/000", "class 1/000"): data for name, data in base.items()},
        "classes": {name.replace("class 0", "class 00"): data for name, data in base.items()},
        "fewer": dict(list(base.items())[1:]),
    }
    digests = [digest(base), *map(digest, other.values()), digest(base, seed=1), digest(base, queries=3)]
    assert len(set(digests)) == len(digests)
    assert digest({name.replace("/", "/n"): data for name, data in base.items()}) == digests[0]


def test_digest_tells_labels_apart_that_move_between_images(tmp_path):
    def digest(labels: list[tuple[int, ...]]) -> str:
        records = (Record(picture(row), str(row), label) for row, label in enumerate(labels))
        return shards.verify(Source("n", ("a", "b"), "l", "s", 2, records), tmp_path).content.hexdigest()

    variants = [[(0, 1), ()], [(), (0, 1)], [(0,), (1,)], [(1,), (0,)]]
    assert len({digest(labels) for labels in variants}) == 4 and digest(variants[0]) == digest(variants[0])


def test_own_shards_are_a_source(tmp_path):
    run(params("scenes", **TINY))
    before, labels = images(), ImageShards().labels(len(SHOWN))
    shutil.copytree(IMAGES, tmp_path / "set")
    run(params("parquet", path=str(tmp_path / "set")))
    assert images() == before and (ImageShards().labels(len(SHOWN)) == labels).all()
    assert read_dataset().class_names == list(SHOWN) and read_dataset().licence == "MIT"


def test_folder_without_labels(tmp_path):
    run(params("folder", path=str(fill(tmp_path / "set", {f"{i}.png": picture(i) for i in range(30)}))))
    dataset = read_dataset()
    assert dataset.class_names == [] and not dataset.has_labels and dataset.counts["images"] == 30
    assert ImageShards().labels(0).shape == (30, 0)


def test_parquet_with_an_official_split(tmp_path):
    for split, start, n in (("train", 0, 30), ("test", 30, 10)):
        pixels = [{"bytes": picture(row), "path": None} for row in range(start, start + n)]
        table = pa.table({"image": pixels, "label": [row % 3 for row in range(n)]})
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    run(params("parquet", path=str(tmp_path / "*.parquet")))
    dataset = read_dataset()
    assert dataset.protocol == "official" and dataset.class_names == ["0", "1", "2"]
    assert dataset.counts == {"images": 40, "query": 10, "database": 30, "train": 30}
    assert set(dataset.digests) == {"train-00000-of-00001.parquet", "test-00000-of-00001.parquet"}
    assert [images()[index] for index in ImageShards().ids("query")] == [picture(row) for row in range(30, 40)]


def test_cifar10(tmp_path, monkeypatch):
    archive = tmp_path / cifar10.NAME
    monkeypatch.setattr(cifar10, "SHA256", write_archive(archive, batches(10)))
    run(params("cifar10", mirror=tmp_path.as_uri(), queries=100, train=50))
    dataset = read_dataset()
    assert dataset.counts == {"images": 600, "query": 100, "database": 500, "train": 50}
    assert dataset.protocol == "cifar10" and dataset.digests == {cifar10.NAME: cifar10.SHA256}
    labels = ImageShards().labels(10)
    assert (labels[ImageShards().ids("train")].sum(0) == 5).all()
    assert len(images()) == 600


def test_streams(monkeypatch):
    """At most two row groups of records are ever held."""
    alive = peak = 0

    class Pixels(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def records():
        nonlocal alive, peak
        data = picture(0)
        for index in range(3000):
            alive += 1
            peak = max(peak, alive)
            yield Record(Pixels(data), str(index))

    monkeypatch.setattr(shards, "GROUP_ROWS", 100)
    monkeypatch.setattr(stage, "open_source", lambda _: Source("n", (), "l", "s", 3000, records()))
    run(params("folder"))
    assert read_dataset().counts["images"] == 3000 and 100 <= peak <= 201


# ---- unreadable images


BROKEN = {
    "empty.png": (b"", "is empty"),
    "text.jpg": (b"hello", "is no image of a known kind"),
    "half.png": (picture(1, 64)[:6000], "cannot be decoded"),
    "huge.ppm": (b"P6 10000 10000 255\n", "10000x10000 pixels, more than 50,000,000"),
    "bomb.ppm": (b"P6 100000 100000 255\n", "cannot be decoded (Image size (10000000000 pixels) exceeds limit"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is no image of a known kind"),
}


def test_unreadable_images_are_listed_and_left_out(tmp_path):
    contents = pictures(44) | {f"class 0/{name}": data for name, (data, _) in BROKEN.items()}
    run(params("folder", path=str(fill(tmp_path / "set", contents)), max_skipped=0.12))
    header, *rows = skipped()
    assert header == ["source", "reason"]
    assert [name for name, _ in rows] == sorted(f"class 0/{name}" for name in BROKEN)
    assert all(reason.startswith(BROKEN[Path(name).name][1]) for name, reason in rows)
    assert read_dataset().skipped == 6 and read_dataset().counts["images"] == len(images()) == 44


def test_more_unreadable_images_than_allowed(tmp_path):
    run(params("scenes", **TINY))
    before = DATASET.read_bytes()
    contents = pictures(44) | {f"class 0/{name}": data for name, (data, _) in BROKEN.items()}
    path = str(fill(tmp_path / "set", contents))
    with pytest.raises(InputError, match=r"set: 6 of 50 images cannot be read, more than data.max_skipped \(0.119\)"):
        run(params("folder", path=path, max_skipped=0.119))
    assert len(skipped()) == 7 and "reports/skipped.csv" in str(SKIPPED)
    assert DATASET.read_bytes() == before and len(images()) == 100
    assert nothing_left_over()


def test_no_readable_image(tmp_path):
    with pytest.raises(InputError, match=r"none of its 2 images can be read; see reports/skipped.csv"):
        run(params("folder", path=str(fill(tmp_path / "set", {"a.png": b"", "b.png": b"x"})), max_skipped=1))
    assert len(skipped()) == 3 and not IMAGES.exists()


def test_unreadable_rows_of_parquet_are_named(tmp_path):
    pixels = [{"bytes": picture(row) if row != 7 else b"broken", "path": "same.png"} for row in range(20)]
    pq.write_table(pa.table({"image": pixels}), tmp_path / "some.parquet")
    run(params("parquet", path=str(tmp_path / "some.parquet"), max_skipped=0.05))
    assert skipped()[1:] == [["some.parquet#7 same.png", "is no image of a known kind"]]
    assert images() == [picture(row) for row in range(20) if row != 7]


def test_large_image_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_BYTES", len(picture(0)) + 500)
    contents = {f"{index}.png": picture(index) for index in range(9)} | {"big.png": picture(0, 64)}
    run(params("folder", path=str(fill(tmp_path / "set", contents)), max_skipped=0.1))
    assert skipped()[1][0] == "big.png" and "bytes, more than" in skipped()[1][1]


# ---- parameters


@pytest.mark.parametrize("dataset", ["parquet", "folder"])
def test_path_is_needed(dataset):
    with pytest.raises(InputError, match=f"params.yaml: data.path is missing; dataset '{dataset}'"):
        run(params(dataset))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocol", "none"), ("seed", -1), ("seed", 0.5), ("queries", 0), ("database", -3), ("train", "all"),
        ("max_skipped", 1.5), ("max_skipped", -0.1), ("mirror", "example.org/x"), ("mirror", "ftp://x/y"), ("path", 3),
    ],
)  # fmt: skip
def test_bad_value(key, value):
    with pytest.raises(InputError, match=rf"data\.{key}: {value!r} is not allowed"):
        params("scenes", **{key: value})


def test_too_many_training_images():
    with pytest.raises(InputError, match=r"data.train: 4,000 training images do not fit into 80 images"):
        run(params("scenes", queries=20, database=80))
    assert not IMAGES.exists() and not DATASET.exists() and nothing_left_over()


def test_more_classes_than_a_label_can_count(monkeypatch):
    names = tuple(map(str, range(40_000)))
    monkeypatch.setattr(stage, "open_source", lambda _: Source("n", names, "l", "here", 0, iter(())))
    with pytest.raises(InputError, match="here: 40,000 classes, at most 32,767"):
        run(params("folder"))


# ---- disk and kills, through the command line


def script(dataset: str, data: dict[str, Any], before: str = "") -> list[str]:
    """A process that runs this stage alone, ended as the command ends it."""
    code = f"""
import sys
import stages.__main__ as program
program.STAGES = ("download",)  # then params.yaml needs nothing else, and the command has no name
{before}
if __name__ == "__main__":
    sys.argv = ["stages"]
    program.main()
"""
    Path("params.yaml").write_text(json.dumps({"dataset": dataset, "data": data}))
    Path("program.py").write_text(code)
    return [sys.executable, "program.py"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def run_script(*arguments: Any, **options: Any) -> subprocess.CompletedProcess:
    command = script(*arguments)
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, **options)


def one_line(result: subprocess.CompletedProcess, code: int) -> str:
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and not result.stdout
    return result.stderr


def test_command_says_one_line(tmp_path):
    message = one_line(run_script("folder", {"path": str(tmp_path / "nothing")}), 2)
    assert message == f"error: data.path: {tmp_path / 'nothing'}: no such directory or archive\n"


def test_unreachable_mirror_is_exit_code_1(workplace):
    before = "import stages.download.fetch as f; f.BACK_OFF = 0.0"
    message = one_line(run_script("cifar10", {"mirror": "http://127.0.0.1:9/"}, before), 1)
    assert "http://127.0.0.1:9/cifar-10-python.tar.gz: cannot be fetched" in message
    assert ".resume/archives/6d958be074577803-cifar-10-python.tar.gz" in message


def test_read_only_place(workplace):
    workplace.joinpath("data").write_text("in the way")  # like a read-only directory, but for root as well
    message = one_line(run_script("scenes", TINY), 2)
    assert "data" in message and workplace.joinpath("data").read_text() == "in the way"


@pytest.mark.parametrize("limit", [100_000, 700_000])
def test_full_disk(limit):
    """No file may be longer than `limit`, which breaks either the first or (the metadata is longer) a later write."""
    resources = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))}
    before = "import stages.download.shards as s; s.GROUP_ROWS = 10"
    message = one_line(run_script("scenes", TINY, before, **resources), 2)
    assert "large" in message.lower()
    assert not IMAGES.exists() and not DATASET.exists() and nothing_left_over()


def test_full_disk_while_the_result_is_written(monkeypatch):
    run(params("scenes", **TINY))
    before = {file: file.read_bytes() for file in (*IMAGES.iterdir(), DATASET)}

    class Full(shards.ShardWriter):
        def write(self, table: pa.Table) -> None:
            super().write(table)
            if "tmp" in str(self._directory):
                raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "ShardWriter", Full)
    with pytest.raises(OSError, match="No space left"):
        run(params("scenes", seed=1, **TINY))
    assert {file: file.read_bytes() for file in (*IMAGES.iterdir(), DATASET)} == before and nothing_left_over()


PLUG = """
import importlib, os, signal
import stages.download.stage

def pull_plug(module, name, count):
    inner, calls = getattr(module, name), [0]
    def outer(*arguments, **options):
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*arguments, **options)
    setattr(module, name, outer)

if __name__ == "__main__":
    import shutil
    import pyarrow.parquet
    import stages.download.shards
    pull_plug({module}, {name!r}, {count})
"""


@pytest.mark.slow
@pytest.mark.parametrize("existing", [False, True])
def test_killed_anywhere_leaves_nothing_half_written(existing):
    """At each step of the work, killed as by the power plug: what is at the target is complete, or is not there."""
    killed_at = 0
    for module, name, count in (
        ("pyarrow.parquet", "ParquetWriter", 1), ("stages.download.stage", "write_skipped", 1),
        ("stages.download.stage", "write_shards", 1), ("pyarrow.parquet", "ParquetWriter", 2),
        ("shutil", "rmtree", 2), ("shutil", "rmtree", 3), ("os", "replace", 2), ("os", "replace", 3),
    ):  # fmt: skip
        if existing:
            run(params("scenes", **TINY))
        result = run_script("scenes", TINY | {"seed": 1}, PLUG.format(module=module, name=name, count=count))
        assert result.returncode in (0, -signal.SIGKILL), result.stderr
        killed_at += result.returncode != 0
        if DATASET.exists():  # then it belongs to the images
            assert ImageShards().provenance.dataset == read_dataset().digest
        if IMAGES.exists():
            assert len(images()) == 100 and ImageShards().columns(["id"])["id"].to_pylist() == list(range(100))
    assert killed_at >= 7
    run(params("scenes", **TINY))
    assert nothing_left_over() and len(images()) == 100


#: Shards are begun early, so that there is something to wait for.
SOON = "import stages.download.shards as s; s.GROUP_ROWS = 100"


def wait_for_end_of_group(group: int) -> None:
    deadline = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)


@pytest.mark.parametrize("sign", ["download-*", "download-*/*.parquet"])
def test_interrupt_is_one_line_and_ends_the_workers(workplace, sign):
    """Both while the workers start and while they work."""
    command = script("scenes", {"queries": 1000, "database": 8000}, SOON)
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True, cwd=workplace
    )
    deadline = time.monotonic() + 60
    while not list(RESUME.glob(sign)) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == "error: interrupted; the same command resumes\n"
    assert nothing_left_over() and not IMAGES.exists()
    wait_for_end_of_group(process.pid)


def test_workers_end_when_the_stage_is_killed(workplace):
    command = script("scenes", {"queries": 1000, "database": 8000}, SOON)
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, env=environment(), start_new_session=True, cwd=workplace
    )
    deadline = time.monotonic() + 60
    while not list(RESUME.glob("download-*/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    wait_for_end_of_group(process.pid)
    run(params("scenes", **TINY))
    assert nothing_left_over()


# ---- real data


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
def test_photographs():
    run(params("parquet", path=str(SHARED / "clothing")))
    dataset = read_dataset()
    assert dataset.counts == {"images": 3781, "query": 372, "database": 3409, "train": 3409} and not dataset.skipped
    first = pq.read_table(SHARED / "clothing" / "test-00000-of-00001.parquet").slice(0, 1).to_pylist()[0]
    assert images()[0] == first["image"]["bytes"] and len(ImageShards().labels(10)) == 3781


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="no shared data here")
def test_all_of_cifar10_as_parquet():
    run(params("parquet", path=str(SHARED / "cifar10"), protocol="cifar10"))
    dataset = read_dataset()
    assert dataset.counts == {"images": 60_000, "query": 10_000, "database": 50_000, "train": 5000}
    labels = ImageShards().labels(10)
    assert (labels[ImageShards().ids("query")].sum(0) == 1000).all()
    assert (labels[ImageShards().ids("train")].sum(0) == 500).all()
    table = pq.read_table(SHARED / "cifar10" / "train-00000-of-00001.parquet", columns=["image"])
    source = [image.as_py() for image in table["image"].combine_chunks().field("bytes")]
    digest = hashlib.sha256(b"".join(source)).hexdigest()
    assert hashlib.sha256(b"".join(images()[10_000:])).hexdigest() == digest
