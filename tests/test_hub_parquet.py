"""Image Parquet of the hub, from a server that speaks its protocol: revisions, sub-paths, the cache, and failures."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import COMMIT, Hub, commit_of, serve_hub
from picture import picture

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

CONVERTED = commit_of("refs/convert/parquet")


def pictures(first: int, n: int = 3, column: str = "image") -> bytes:
    """A Parquet file of `n` pictures of two classes, as the hub has them."""
    feature = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, column: {"_type": "Image"}}
    images = [{"bytes": picture(row), "path": f"{row}.png"} for row in range(first, first + n)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(images, kind), "label": [row % 2 for row in range(first, first + n)]})
    content = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})}), content)
    return content.getvalue()


TRAIN, TEST, OTHER = pictures(0, 4, "img"), pictures(4, 2, "img"), pictures(10)
TWO = {"data/train-00000-of-00001.parquet": TRAIN, "data/test-00000-of-00001.parquet": TEST, "README.md": b"x"}
NAMES = sorted(name for name in TWO if name.endswith(".parquet"))

REPOSITORIES = {
    "datasets/org/good": {".gitattributes": b"", **TWO, "loader.py": b"import nothing"},
    "datasets/org/good@refs/convert/parquet": {
        "default/partial-train/0000.parquet": TRAIN, "default/test/0000.parquet": TEST,
    },
    "datasets/org/good@v1/beta": {"old.parquet": OTHER},
    "datasets/org/configurations": {
        "plain_text/test.parquet": TEST, "plain_text/train.parquet": TRAIN, "extra/deep/train.parquet": OTHER,
        ".hidden/x.parquet": b"",
    },
    "datasets/org/script": {"script.py": b"x", "data.zip": b"x"},
    "datasets/org/foreign": {"a.parquet": b"PAR1 and nothing else"},
    **{f"datasets/org/{name}": TWO for name in
       ("gated", "down", "silent", "silent-list", "truncated", "flaky", "lying", "half")},
}  # fmt: skip

#: Opens the data set of each path of its argument; prints what came of it.
DRIVER = """
import hashlib, json, os, sys, time
from huggingface_hub import constants
from stages import hub
from stages.download.config import DatasetOptions
from stages.download.datasets.parquet import parquet
from stages.errors import InputError, OutsideError
hub.TIMEOUT = 1
constants.DOWNLOAD_CHUNK_SIZE = 256  # smaller than the files, as it is for real ones
for path in json.loads(sys.argv[1]):
    began = time.monotonic()
    try:
        source = parquet(DatasetOptions(name="parquet", path=path))
        records = [(r.labels, r.split, hashlib.sha256(r.data).hexdigest()) for r in source.records(0)]
        assert list(source.records(2)) == list(source.records(0))[2:]
        outcome = {"name": source.name, "source": source.source, "digests": dict(source.digests), "size": source.size,
                   "notes": source.notes, "licence": source.licence, "records": records}
    except (InputError, OutsideError) as error:
        outcome = f"{type(error).__name__}: {error}"
    print(json.dumps([path, outcome, time.monotonic() - began]))
"""


def open_all(paths: list[str], endpoint: str, cache: Path, **environment: str) -> dict[str, Any]:
    """The outcome of opening each of `paths`, in a process whose hub is `endpoint`."""
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **environment,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(paths)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warnings, no bars: one line is what the user gets
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(seconds < 20 for _, _, seconds in outcomes), outcomes
    assert all("\n" not in outcome for _, outcome, _ in outcomes if isinstance(outcome, str))
    return {path: outcome for path, outcome, _ in outcomes}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve_hub(REPOSITORIES) as server:
        yield server


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


FINE = [
    "hf://datasets/org/good", f"hf://datasets/org/good@{COMMIT}", "hf://datasets/org/good@main/data",
    "hf://datasets/org/good/data/test-*.parquet", "hf://datasets/org/good@refs/convert/parquet",
    "hf://datasets/org/good@refs%2Fconvert%2Fparquet/default/test", "hf://datasets/org/good@v1%2Fbeta/old.parquet",
    "hf://datasets/org/configurations/plain_text", "hf://datasets/org/configurations/**/train.parquet",
    "hf://datasets/org/flaky",
]  # fmt: skip
BROKEN = [
    "hf://datasets/org/lost", "hf://datasets/org/gated", "hf://datasets/org/down", "hf://datasets/org/silent",
    "hf://datasets/org/silent-list", "hf://datasets/org/truncated", "hf://datasets/org/lying",
    "hf://datasets/org/script", "hf://datasets/org/good@v2", "hf://datasets/org/good/*.parquet",
    "hf://datasets/org/good/data/", "hf://datasets/org/good/dat", "hf://datasets/org/configurations",
    "hf://org/good", "hf://datasets/good", "hf://datasets/org/good@", "hf://datasets/org/foreign",
]  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(hub: Hub, cache: Path) -> dict[str, Any]:
    return open_all([*FINE, *BROKEN], hub.address, cache)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_newest_version_is_pinned(outcomes, hub):
    found = outcomes["hf://datasets/org/good"]
    assert found["source"] == f"hf://datasets/org/good@{COMMIT}" and found["name"] == "org/good"
    assert found["digests"] == {name: digest(TWO[name]) for name in NAMES}
    assert found["licence"] == "cc0-1.0"
    assert [record[1] for record in found["records"]] == ["test"] * 2 + ["train"] * 4
    assert [tuple(record[0]) for record in found["records"]] == [(row % 2,) for row in (4, 5, 0, 1, 2, 3)]
    assert [record[2] for record in found["records"]] == [digest(picture(row)) for row in (4, 5, 0, 1, 2, 3)]
    (note,) = found["notes"]
    assert f"set dataset.path: hf://datasets/org/good@{COMMIT}." in note
    # The list of files has several pages, and only Parquet is fetched.
    assert any("cursor=4" in request for request in hub.requests)
    assert not any("README" in request or "loader.py" in request for request in hub.requests)


def test_pinned_version_needs_no_note_and_no_second_download(outcomes, hub):
    pinned, newest = outcomes[f"hf://datasets/org/good@{COMMIT}"], outcomes["hf://datasets/org/good"]
    assert pinned == newest | {"notes": []}
    bodies = [request for request in hub.requests if request.startswith(f"GET /cdn/datasets/org/good/resolve/{COMMIT}")]
    assert len(bodies) == 2


@pytest.mark.parametrize(
    ("path", "source", "names"),
    [
        ("hf://datasets/org/good@main/data", f"hf://datasets/org/good@{COMMIT}/data", NAMES),
        ("hf://datasets/org/good/data/test-*.parquet", f"hf://datasets/org/good@{COMMIT}/data/test-*.parquet",
         NAMES[:1]),
        ("hf://datasets/org/good@refs/convert/parquet", f"hf://datasets/org/good@{CONVERTED}",
         ["default/partial-train/0000.parquet", "default/test/0000.parquet"]),
        ("hf://datasets/org/good@refs%2Fconvert%2Fparquet/default/test",
         f"hf://datasets/org/good@{CONVERTED}/default/test", ["default/test/0000.parquet"]),
        ("hf://datasets/org/good@v1%2Fbeta/old.parquet",
         f"hf://datasets/org/good@{commit_of('v1/beta')}/old.parquet", ["old.parquet"]),
        ("hf://datasets/org/configurations/plain_text", f"hf://datasets/org/configurations@{COMMIT}/plain_text",
         ["plain_text/test.parquet", "plain_text/train.parquet"]),
        ("hf://datasets/org/configurations/**/train.parquet",
         f"hf://datasets/org/configurations@{COMMIT}/**/train.parquet",
         ["extra/deep/train.parquet", "plain_text/train.parquet"]),
    ],
)  # fmt: skip
def test_revisions_and_sub_paths(outcomes, path, source, names):
    assert outcomes[path]["source"] == source and list(outcomes[path]["digests"]) == names
    assert f"set dataset.path: {source}." in outcomes[path]["notes"][0]


def test_conversion_of_the_hub_that_is_incomplete(outcomes):
    found = outcomes["hf://datasets/org/good@refs/convert/parquet"]
    assert [record[1] for record in found["records"]] == ["train"] * 4 + ["test"] * 2
    assert found["notes"][1] == "The hub has converted only the beginning of this data set to Parquet."


def test_interrupted_download_goes_on(outcomes, hub):
    assert outcomes["hf://datasets/org/flaky"]["digests"] == {name: digest(TWO[name]) for name in NAMES}
    assert hub.broken_off >= 2


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("lost", "does not exist or is private; correct the name, or log in"),
        ("gated", "wants its terms accepted; do so there, log in"),
        ("good@v2", "has no revision 'v2'; correct it"),
        ("lying", f"SHA-256 is .*, the hub's is {digest(TEST)}; it was deleted, run it again"),
        ("script", "has no Parquet file; the hub's own conversion may be at @refs/convert/parquet"),
        ("good/*.parquet", "matches none of its 2 Parquet files"),
        ("good/dat", "matches none of its 2 Parquet files"),
        ("configurations", r"has several configurations; append one of extra, plain_text as a folder, or \*\*/"),
        ("good@", "Empty revision after '@'"),
        ("foreign", r"a\.parquet: cannot be read as Parquet"),
    ],
)  # fmt: skip
def test_what_the_user_can_mend(outcomes, hub, name, match):
    outcome = outcomes[f"hf://datasets/org/{name}"]
    assert outcome.startswith("InputError: ")
    assert re.search(match, outcome), outcome


def test_paths_that_are_no_data_set(outcomes):
    assert "names a model; a data set is hf://datasets/owner/name" in outcomes["hf://org/good"]
    assert "Write hf://datasets/owner/name" in outcomes["hf://datasets/good"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("down", "503"), ("silent", "timed out"), ("silent-list", "timed out"), ("truncated", "breaks off")],
)
def test_failures_of_the_hub(outcomes, hub, name, reason):
    outcome = outcomes[f"hf://datasets/org/{name}"]
    assert outcome.startswith(f"OutsideError: {hub.address}/datasets/org/{name}: cannot fetch ") and reason in outcome
    assert "hf download --repo-type dataset" in outcome and "set dataset.path: DIRECTORY" in outcome


def test_file_that_is_not_what_the_hub_says_is_not_kept(outcomes, cache):
    repository = cache / "hub" / "datasets--org--lying"
    assert not list(repository.rglob("*.parquet")) and not list((repository / "blobs").iterdir())


@pytest.fixture(scope="module")
def nowhere() -> str:
    """The address of a hub that nobody runs."""
    free = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    free.server_close()
    return f"http://127.0.0.1:{free.server_address[1]}"


CACHED = ["hf://datasets/org/good", f"hf://datasets/org/good@{COMMIT}/data"]


@pytest.mark.parametrize("forbidden", [{}, {"HF_HUB_OFFLINE": "1"}, {"CONCEPTBITS_OFFLINE": "1"}])
def test_without_the_hub(outcomes, hub, nowhere, cache, forbidden):
    asked = len(hub.requests)
    # Offline, not even a hub that is there is asked.
    again = open_all(
        [*CACHED, "hf://datasets/org/good@v3", "hf://datasets/org/new"],
        hub.address if forbidden else nowhere,
        cache,
        **forbidden,
    )
    assert len(hub.requests) == asked
    assert again["hf://datasets/org/good"]["records"] == outcomes["hf://datasets/org/good"]["records"]
    assert again["hf://datasets/org/good"]["digests"] == outcomes["hf://datasets/org/good"]["digests"]
    assert again[CACHED[1]]["source"] == f"hf://datasets/org/good@{COMMIT}/data"
    assert again[CACHED[1]]["notes"] == []
    assert again[CACHED[0]]["notes"][1].startswith("The hub was not asked for a newer version")
    for name in ("good@v3", "new"):
        outcome = again[f"hf://datasets/org/{name}"]
        if forbidden:
            assert outcome.startswith("InputError: dataset.path: ") and "is not in the hub's cache" in outcome
            assert f"and {next(iter(forbidden))} is set, so it is not fetched; unset it, or download it" in outcome
        else:
            assert outcome.startswith(f"OutsideError: {nowhere}/datasets/org/")


def test_half_a_cache_is_no_data_set(hub, nowhere, tmp_path):
    """One of two files was fetched, then the hub went away."""
    one = "hf://datasets/org/half/data/test-00000-of-00001.parquet"
    assert open_all([one], hub.address, tmp_path)[one]["size"] == 2
    again = open_all([one, "hf://datasets/org/half"], nowhere, tmp_path)
    assert again[one]["size"] == 2
    assert again["hf://datasets/org/half"].startswith("OutsideError: ")
    again = open_all([one, "hf://datasets/org/half"], nowhere, tmp_path, CONCEPTBITS_OFFLINE="1")
    assert again[one]["size"] == 2 and "is not in the hub's cache" in again["hf://datasets/org/half"]
