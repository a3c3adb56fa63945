"""From a server with faults to shards, by the command: archives in the official format, fetched, kept and held to."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from download_run import images, nothing_left_over, one_line, run_script, skipped
from flaky_server import Flaky, serve
from mirflickr_archives import write_annotations, write_images
from odd_pictures import READABLE, UNREADABLE
from picture import picture

from stages.images import ImageShards, read_dataset

#: As if the publisher gave no digest of either archive.
UNVOUCHED = """
from dataclasses import replace
import stages.download.datasets.mirflickr25k as m, stages.download.transfer as t
m.IMAGES, t.BACK_OFF = replace(m.IMAGES, digest=None), 0.01
"""
LABELS = {"sky": [1, 2, 3, 4, 5, 6, 7, 8, 9, 20], "sea": [2, 4, 11, 12], "dog": [15], "dog_r1": [15]}


pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def pictures() -> dict[int, bytes]:
    """Twenty images, some of which are odd; 10, 13, 14 and 16 to 19 have no label."""
    content = {number: picture(number, kind="JPEG") for number in range(1, 21)}
    content |= dict(zip((3, 4, 5), READABLE.values(), strict=True))
    return content | dict(zip((6, 7, 8, 9), UNREADABLE.values(), strict=True))


@pytest.fixture
def server(tmp_path: Path, pictures: dict[int, bytes]) -> Iterator[Flaky]:
    files = {
        "mirflickr25k.zip": write_images(tmp_path / "images.zip", pictures).read_bytes(),
        "mirflickr25k_annotations_v080.zip": write_annotations(tmp_path / "labels.zip", LABELS).read_bytes(),
    }
    with serve(files) as flaky:
        yield flaky


def options(server: Flaky) -> dict[str, object]:
    return {"mirrors": [server.url], "queries": 2, "train": 3, "max_skipped": 0.5}


def test_a_bad_server_and_odd_pictures(server, pictures):
    server.statuses, server.drop_after = [503, 429], [700, None, 2000]
    result = run_script("mirflickr25k", options(server), UNVOUCHED)
    assert result.returncode == 0, result.stderr
    dataset = read_dataset()
    assert images() == [pictures[number] for number in (1, 2, 3, 4, 5, 11, 12, 15, 20)]
    assert [row[0] for row in skipped()[1:]] == [f"mirflickr/im{number}.jpg" for number in (6, 7, 8, 9)]
    assert [row[1] for row in skipped()[1:]][1] == "is empty" and "bomb" in skipped()[4][1]
    assert dataset.counts == {"images": 9, "query": 2, "database": 7, "train": 3} and dataset.skipped == 4
    assert dataset.protocol == "mirflickr25k (queries 2, train 3)" and len(dataset.class_names) == 24
    assert set(dataset.digests) == {"mirflickr25k.zip", "mirflickr25k_annotations_v080.zip"}
    labels = ImageShards().labels(24)
    assert labels[:, dataset.class_names.index("sea")].tolist() == [n in (2, 4, 11, 12) for n in (1, 2, 3, 4, 5, 11, 12,
                                                                                                  15, 20)]  # fmt: skip
    assert any("24,987 of 25,000 images have none of the 24 labels" in note for note in dataset.notes)
    assert nothing_left_over()
    asked = len(server.requests)
    assert run_script("mirflickr25k", options(server), UNVOUCHED).returncode == 0
    assert len(server.requests) == asked  # all of it is in the cache


def test_another_file_than_the_first_time_is_refused(server, tmp_path):
    assert run_script("mirflickr25k", options(server), UNVOUCHED).returncode == 0
    before = read_dataset()
    for cached in Path(os.environ["CONCEPTBITS_CACHE"]).glob("*.zip"):
        cached.unlink()
    changed = write_annotations(tmp_path / "changed.zip", LABELS | {"tree": [1]}).read_bytes()
    server.content = {**server.content, "mirflickr25k_annotations_v080.zip": changed}
    message = one_line(run_script("mirflickr25k", options(server), UNVOUCHED), 2)
    recorded = before.digests["mirflickr25k_annotations_v080.zip"]
    assert recorded in message and "digests.json" in message and message.count("SHA-256") >= 1
    assert read_dataset() == before
    assert not list(Path(os.environ["CONCEPTBITS_CACHE"]).glob("*annotations*.zip*part"))


@pytest.mark.parametrize("status", [403, 404])
def test_a_server_that_does_not_have_it(server, status):
    server.statuses = [status] * 20
    nowhere = (
        UNVOUCHED
        + """
m.IMAGES = replace(m.IMAGES, urls=("http://127.0.0.1:9/mirflickr25k.zip",))
m.ANNOTATIONS = replace(m.ANNOTATIONS, urls=("http://127.0.0.1:9/mirflickr25k_annotations_v080.zip",))
"""
    )
    message = one_line(run_script("mirflickr25k", options(server), nowhere), 1)
    assert f"HTTP {status}" in message and server.url in message and "http://127.0.0.1:9/" in message
