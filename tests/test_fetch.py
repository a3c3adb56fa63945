"""Fetching over HTTP from a server with faults, and from a local file."""

import hashlib
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from flaky_server import serve

from stages.download import fetch as fetching
from stages.download.fetch import ARCHIVES, fetch
from stages.errors import InputError, OutsideError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LIMIT = 4_000_000


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetching, "BACK_OFF", 0.0)
    monkeypatch.setattr(fetching, "TIMEOUT", 5.0)


def part(content: bytes | None = None) -> Path:
    path = ARCHIVES / f"{DIGEST[:16]}-file.bin.part"
    if content is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return path


def kept() -> list[str]:
    return [file.name for file in ARCHIVES.iterdir()] if ARCHIVES.exists() else []


def test_whole_file_is_kept_and_used_again():
    with serve(CONTENT) as server:
        path = fetch(f"{server.url}file.bin", DIGEST, LIMIT)
        assert path.read_bytes() == CONTENT
        assert fetch(f"{server.url}file.bin", DIGEST, LIMIT) == path
        assert server.requests == [None]
    assert kept() == [path.name]


def test_continues_where_the_connection_was_lost():
    with serve(CONTENT, drop_after=[1_000_000, 500_000]) as server:
        assert fetch(f"{server.url}file.bin", DIGEST, LIMIT).read_bytes() == CONTENT
        assert server.requests == [None, "bytes=1000000-", "bytes=1500000-"]


def test_continues_what_an_earlier_run_has_left():
    part(CONTENT[:2_000_000])
    with serve(CONTENT) as server:
        assert fetch(f"{server.url}file.bin", DIGEST, LIMIT).read_bytes() == CONTENT
        assert server.requests == ["bytes=2000000-"]


def test_earlier_run_had_all_of_it():
    part(CONTENT)
    with serve(CONTENT) as server:
        assert fetch(f"{server.url}file.bin", DIGEST, LIMIT).read_bytes() == CONTENT
        assert server.requests == ["bytes=3000000-"]


def test_left_over_part_longer_than_the_file():
    part(CONTENT + b"more")
    with serve(CONTENT) as server:
        assert fetch(f"{server.url}file.bin", DIGEST, LIMIT).read_bytes() == CONTENT
        assert server.requests == ["bytes=3000004-", None]


def test_server_that_ignores_ranges():
    with serve(CONTENT, ranges=False, drop_after=[1_000_000]) as server:
        assert fetch(f"{server.url}file.bin", DIGEST, LIMIT).read_bytes() == CONTENT
        assert server.requests == [None, "bytes=1000000-"]


def test_server_that_sends_another_range():
    part(CONTENT[:2_000_000])
    with serve(CONTENT, shift=5) as server:
        assert fetch(f"{server.url}file.bin", DIGEST, LIMIT).read_bytes() == CONTENT
        assert server.requests == ["bytes=2000000-", None]


def test_server_that_never_gets_further_ends():
    with serve(CONTENT, ranges=False, drop_after=[1_000_000, 900_000] * 20) as server:
        with pytest.raises(OutsideError, match=r"connection lost after 1,000,000 of 3,000,000"):
            fetch(f"{server.url}file.bin", DIGEST, LIMIT)
        assert len(server.requests) == 1 + fetching.ATTEMPTS
    assert part().exists()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_error_is_tried_again(status):
    with serve(CONTENT, statuses=[status, status]) as server:
        assert fetch(f"{server.url}file.bin", DIGEST, LIMIT).read_bytes() == CONTENT
        assert len(server.requests) == 3


def test_waits_longer_and_longer(monkeypatch):
    waits = []
    monkeypatch.setattr(fetching, "BACK_OFF", 1.0)
    monkeypatch.setattr(fetching.time, "sleep", waits.append)
    with serve(CONTENT, statuses=[503] * 3) as server:
        fetch(f"{server.url}file.bin", DIGEST, LIMIT)
    assert waits == [1.0, 2.0, 4.0]


def test_lasting_error_is_not_tried_again():
    with serve(CONTENT, statuses=[404]) as server:
        with pytest.raises(OutsideError) as caught:
            fetch(f"{server.url}file.bin", DIGEST, LIMIT)
        assert server.requests == [None]
    message = str(caught.value)
    assert message.startswith(f"{server.url}file.bin: cannot be fetched (HTTP 404 Not Found)")
    assert "data.mirror" in message and str(part().with_suffix("")) in message and "\n" not in message


def test_unreachable_server():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file.bin"
        with pytest.raises(OutsideError, match=rf"{re.escape(url)}: cannot be fetched \(.*refused"):
            fetch(url, DIGEST, LIMIT)


def test_file_put_there_by_hand_is_used():
    path = part(b"").with_suffix("")
    path.write_bytes(CONTENT)
    with serve(b"", statuses=[404]) as server:
        assert fetch(f"{server.url}file.bin", DIGEST, LIMIT).read_bytes() == CONTENT
        assert server.requests == []


@pytest.mark.parametrize("start", [None, CONTENT[:1000]])
def test_wrong_digest_names_both_and_keeps_nothing(start):
    if start:
        part(start)
    wrong = CONTENT[:-1] + b"!"
    with serve(wrong) as server, pytest.raises(InputError) as caught:
        fetch(f"{server.url}file.bin", hashlib.sha256(CONTENT).hexdigest(), LIMIT)
    message = str(caught.value)
    assert DIGEST in message and hashlib.sha256(wrong).hexdigest() in message and "\n" not in message
    assert kept() == []


@pytest.mark.parametrize("length", [True, False])
def test_endless_file_is_refused(length):
    with serve(CONTENT, length=length) as server, pytest.raises(InputError, match="longer than the 1,000 bytes"):
        fetch(f"{server.url}file.bin", DIGEST, 1000)
    assert kept() == []


def test_local_file_is_used_where_it_lies(tmp_path):
    path = tmp_path / "a b.bin"
    path.write_bytes(CONTENT)
    assert fetch(path.as_uri(), DIGEST, LIMIT) == path
    assert kept() == []


def test_local_file_with_another_digest_stays(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"other")
    with pytest.raises(InputError, match=rf"{hashlib.sha256(b'other').hexdigest()}, expected {DIGEST}"):
        fetch(path.as_uri(), DIGEST, LIMIT)
    assert path.read_bytes() == b"other"


def test_local_file_that_is_missing(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        fetch((tmp_path / "file.bin").as_uri(), DIGEST, LIMIT)
