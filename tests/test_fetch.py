"""Fetching published files from servers with faults, mirrors, proxies, local files and the shared cache."""

import errno
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pooch
import pytest
from flaky_server import Flaky, proxy, serve

from stages.download import cache, transfer
from stages.download.fetch import Fetched, Published, fetch
from stages.errors import InputError, OutsideError

ROOT = Path(__file__).parents[1]
CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
LIMIT = 400_000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


DIGEST = sha256(CONTENT)


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transfer, "BACK_OFF", 0.0)
    monkeypatch.setattr(transfer, "TIMEOUT", 5.0)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def published(url: str, digest: str | None = f"sha256:{DIGEST}", limit: int = LIMIT) -> Published:
    return Published((f"{url}file.bin",), digest, limit)


def part(file: Published, content: bytes | None = None, validator: str | None = None) -> Path:
    """Where the unfinished download of a file is; with `content`, it is left there as by an earlier run."""
    path = cache.path_of(file.urls[0])
    path = path.with_name(f"{path.name}.part")
    if content is not None:
        path.write_bytes(content)
        path.with_name(f"{path.name}.json").write_text(json.dumps({"url": file.urls[0], "validator": validator}))
    return path


def kept() -> list[str]:
    """What is in the cache, but for locks."""
    return sorted(path.name for path in cache.directory().iterdir() if path.suffix != ".lock")


def refused(file: Published, kind: type[Exception], *mirrors: str) -> str:
    """The one line with which fetching fails."""
    with pytest.raises(kind) as caught:
        fetch(file, mirrors)
    assert str(caught.value).isprintable()
    return str(caught.value)


# Whole files


def test_whole_file_is_kept_and_used_again(cache_directory):
    with serve(CONTENT) as server:
        fetched = fetch(published(server.url))
        assert fetched == Fetched(cache_directory / fetched.path.name, DIGEST)
        assert fetched.path.read_bytes() == CONTENT and fetched.path.name.endswith("-file.bin")
        assert fetch(published(server.url)) == fetched
        assert server.requests == [None]
        assert server.headers[0]["User-Agent"].startswith("conceptbits")
    assert kept() == [fetched.path.name]


def test_cache_directory_of_the_system(monkeypatch):
    monkeypatch.delenv("CONCEPTBITS_CACHE")
    assert cache.directory() == pooch.os_cache("conceptbits")
    monkeypatch.setenv("CONCEPTBITS_CACHE", "~/here")
    assert cache.directory() == Path.home() / "here"


def test_files_of_one_name_from_two_places_do_not_collide():
    with serve({"a/file.bin": CONTENT, "b/file.bin": OTHER}) as server:
        for _ in range(2):
            for folder, content in (("a/", CONTENT), ("b/", OTHER)):
                assert fetch(published(server.url + folder, None)).path.read_bytes() == content
        assert server.paths == ["/a/file.bin", "/b/file.bin"]


@pytest.mark.parametrize("length", ["untold", "chunked"])
def test_server_that_does_not_tell_the_length(length):
    with serve(CONTENT, length=length) as server:
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert len(server.requests) == 1


def test_file_put_there_by_hand_is_used(cache_directory):
    with serve(CONTENT) as server:
        path = cache.path_of(published(server.url).urls[0])
        path.write_bytes(CONTENT)
        assert fetch(published(server.url)) == Fetched(path, DIGEST)
        assert server.requests == []


def test_damaged_file_in_the_cache_is_fetched_again():
    with serve(CONTENT) as server:
        path = fetch(published(server.url)).path
        path.write_bytes(OTHER)
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        path.write_bytes(OTHER)
        server.statuses = [404]
        message = refused(published(server.url), OutsideError)
    assert f"{path}: SHA-256 is {sha256(OTHER)}, expected {DIGEST}" in message and "HTTP 404" in message
    assert kept() == []


# Continuing


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("length", ["told", "chunked"])
def test_continues_where_the_connection_was_lost(reset, length):
    with serve(CONTENT, drop_after=[150_000, 90_000], length=length, reset=reset) as server:
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert len(server.requests) == 3
        if not reset and length == "told":  # otherwise the last bytes that were sent may not be had
            assert server.requests == [None, "bytes=150000-", "bytes=240000-"]
            assert [headers["If-Range"] for headers in server.headers] == [None, '"v1"', '"v1"']


def test_slow_server_is_waited_for_and_asked_again(monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT", 0.5)
    with serve(CONTENT, stall_at=100_000) as server:
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert server.requests == [None, "bytes=100000-", "bytes=200000-"]


def test_continues_what_an_earlier_run_has_left():
    with serve(CONTENT) as server:
        part(published(server.url), CONTENT[:200_000], '"v1"')
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert server.requests == ["bytes=200000-"]
    assert len(kept()) == 1


def test_part_without_a_byte_is_no_beginning():
    with serve(CONTENT) as server:
        part(published(server.url), b"", '"v1"')
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert server.requests == [None] and server.headers[0]["If-Range"] is None


def test_earlier_run_had_all_of_it():
    with serve(CONTENT) as server:
        part(published(server.url), CONTENT, '"v1"')
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert server.requests == ["bytes=300000-"]


def test_left_over_part_longer_than_the_file():
    with serve(CONTENT) as server:
        part(published(server.url), CONTENT + b"more", '"v1"')
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert server.requests == ["bytes=300004-", None]


def test_416_to_a_request_of_all_of_it():
    with serve(CONTENT, statuses=[416]) as server:
        assert "HTTP 416" in refused(published(server.url), OutsideError)
        assert server.requests == [None]


def test_server_that_ignores_ranges():
    with serve(CONTENT, ranges=False, drop_after=[100_000]) as server:
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert server.requests == [None, "bytes=100000-"]


def test_server_that_sends_another_range():
    with serve(CONTENT, shift=5) as server:
        part(published(server.url), CONTENT[:200_000], '"v1"')
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert server.requests == ["bytes=200000-", None]


def test_server_that_never_gets_further_ends():
    with serve(CONTENT, ranges=False, drop_after=[100_000, 90_000] * 20) as server:
        message = refused(published(server.url), OutsideError)
        assert re.search(r"connection lost after [19]0?0,000 of 300,000 bytes", message)
        assert len(server.requests) == 1 + transfer.ATTEMPTS
        assert part(published(server.url)).exists()


@pytest.mark.parametrize("digest", [f"sha256:{sha256(OTHER)}", None])
@pytest.mark.parametrize("version", ["etag", "modified"])
@pytest.mark.parametrize("if_range", [True, False])
def test_file_that_changes_in_between_is_not_put_together_from_both(digest, version, if_range):
    def change(server: Flaky) -> None:
        server.content, server.etag, server.modified = OTHER, None, None
        setattr(server, version, '"v2"' if version == "etag" else "Tue, 02 Jan 2024 00:00:00 GMT")

    versions = {"etag": '"v1"'} if version == "etag" else {"etag": None, "modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    with serve(CONTENT, drop_after=[100_000], after_drop=change, if_range=if_range, **versions) as server:
        assert fetch(published(server.url, digest)).path.read_bytes() == OTHER
        # A server that does not mind If-Range gives its end away by another tag.
        assert server.requests == [None, "bytes=100000-"] + ([] if if_range else [None])
        assert server.headers[1]["If-Range"] == versions[version]


@pytest.mark.parametrize(("digest", "second"), [(f"sha256:{DIGEST}", "bytes=100000-"), (None, None)])
def test_weak_tag_is_no_version_and_a_beginning_nobody_vouches_for_needs_a_digest(digest, second):
    with serve(CONTENT, etag='W/"v1"', drop_after=[100_000]) as server:
        assert fetch(published(server.url, digest)).path.read_bytes() == CONTENT
        assert server.requests == [None, second]
        assert server.headers[1]["If-Range"] is None


def test_beginning_from_one_mirror_is_continued_at_another():
    with (
        serve(CONTENT, drop_after=[200_000], after_drop=lambda server: server.statuses.append(404)) as one,
        serve(CONTENT, etag='"another"') as two,
    ):
        assert fetch(published(two.url), [one.url]).path.read_bytes() == CONTENT
        assert two.requests == ["bytes=200000-"] and two.headers[0]["If-Range"] is None


def test_wrong_beginning_is_thrown_away_before_the_file_is_blamed():
    with serve(CONTENT) as server:
        part(published(server.url), OTHER[:100_000], '"v1"')
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert server.requests == ["bytes=100000-", None]


def test_cut_file_of_untold_length_is_fetched_once_more():
    with serve(CONTENT, length="untold", drop_after=[100_000]) as server:
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert server.requests == [None, None]


def test_server_that_tells_too_much():
    with serve(CONTENT, length_error=1000) as server:  # it has no more, which its 416 admits
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert server.requests == [None, "bytes=300000-"]
    with serve(CONTENT, length_error=1000, ranges=False) as server:
        assert "lost after 300,000 of 301,000" in refused(published(server.url), OutsideError)


def test_server_that_tells_too_little():
    with serve(CONTENT, length_error=-1000) as server:
        assert f"SHA-256 is {sha256(CONTENT[:-1000])}" in refused(published(server.url), InputError)
    assert kept() == []


# Errors, waiting, redirects


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_error_is_tried_again(status):
    with serve(CONTENT, statuses=[status, status]) as server:
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert len(server.requests) == 3


def test_error_that_does_not_pass():
    with serve(CONTENT, statuses=[503] * 100) as server:
        assert "HTTP 503 Service Unavailable" in refused(published(server.url), OutsideError)
        assert len(server.requests) == transfer.ATTEMPTS


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [(None, [1.0, 2.0, 4.0]), ("7", [7.0] * 3), ("100000", [60.0] * 3), ("soon", [1.0, 2.0, 4.0]),
     ("Mon, 01 Jan 2125 00:00:00 GMT", [60.0] * 3),
     ("Mon, 01 Jan 2024 00:00:00 GMT", [0.0] * 3)],
)  # fmt: skip
@pytest.mark.parametrize("status", [429, 503])
def test_waits_longer_and_longer_or_as_the_server_asks(monkeypatch, status, retry_after, expected):
    waits = []
    monkeypatch.setattr(transfer, "BACK_OFF", 1.0)
    monkeypatch.setattr(transfer, "sleep", waits.append)
    with serve(CONTENT, statuses=[status] * 3, retry_after=retry_after) as server:
        fetch(published(server.url))
    assert waits == expected


@pytest.mark.parametrize(("status", "reason"), [(403, "HTTP 403 Forbidden"), (404, "HTTP 404 Not Found")])
def test_lasting_error_is_not_tried_again(status, reason):
    with serve(CONTENT, statuses=[status]) as server:
        file = published(server.url)
        message = refused(file, OutsideError)
        assert server.requests == [None]
    assert message.startswith(f"file.bin: cannot be fetched: {file.urls[0]} ({reason}).")
    assert "dataset.mirrors" in message and message.endswith(str(cache.path_of(file.urls[0])))


def test_every_place_is_named_with_its_reason(tmp_path):
    with serve(CONTENT, statuses=[404]) as one, serve(CONTENT, statuses=[403]) as two, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        message = refused(published(two.url), OutsideError, one.url, closed, tmp_path.as_uri())
    assert message.startswith(
        f"file.bin: cannot be fetched: {one.url}file.bin (HTTP 404 Not Found); {closed}file.bin (Connection refused); "
        f"{tmp_path.as_uri()}/file.bin (no such file); {two.url}file.bin (HTTP 403 Forbidden). "
    )


def test_address_that_cannot_be_one():
    assert "127.0.0.1:x" in refused(published("http://127.0.0.1:x/"), OutsideError)


def test_redirect_is_followed_with_the_range():
    def again(server: Flaky) -> None:
        server.redirects.append("there/it%20is.bin")

    with serve({"there/it is.bin": CONTENT}, redirects=["/there/it%20is.bin"], after_drop=again) as server:
        server.drop_after = [100_000]
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert server.paths == ["/file.bin", "/there/it%20is.bin"] * 2
        assert server.requests == [None, None, "bytes=100000-", "bytes=100000-"]
        assert server.headers[3]["If-Range"] == '"v1"'


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/file.bin", "data:,x", "file:///\x1b[31m"])
def test_redirect_to_anything_but_the_web_is_refused(target):
    with serve(CONTENT, redirects=[target]) as server:
        assert "is not allowed" in refused(published(server.url), OutsideError)
        assert len(server.requests) == 1
    assert kept() == []


@pytest.mark.parametrize("targets", [["/file.bin"] * 100, [f"/{number}" for number in range(100)]])
def test_redirects_come_to_an_end(targets):
    with serve(CONTENT, redirects=targets) as server:
        assert "HTTP 302" in refused(published(server.url), OutsideError)
        assert len(server.requests) <= 11


# Digests


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
@pytest.mark.parametrize("start", [b"", CONTENT[:1000]])
def test_wrong_digest_names_both_keeps_nothing_and_asks_nobody_else(algorithm, start):
    expected, found = (hashlib.new(algorithm, content).hexdigest() for content in (CONTENT, OTHER))
    with serve(OTHER) as mirror, serve(CONTENT) as official:
        file = published(official.url, f"{algorithm}:{expected}")
        part(file, start, '"v1"')
        message = refused(file, InputError, mirror.url)
        assert official.requests == []
    name = {"sha256": "SHA-256", "md5": "MD5"}[algorithm]
    assert message.startswith(f"{mirror.url}file.bin: {name} is {found}, expected {expected}; ")
    assert kept() == []


def test_digest_in_capital_letters():
    with serve(CONTENT) as server:
        assert fetch(published(server.url, f"sha256:{DIGEST.upper()}")).sha256 == DIGEST


@pytest.mark.parametrize("length", ["told", "untold", "chunked"])
@pytest.mark.parametrize("start", [0, 80_000])
def test_longer_than_allowed_is_never_on_the_disk(monkeypatch, length, start):
    sizes = []
    discard = transfer.discard
    monkeypatch.setattr(transfer, "PIECE", 10_000)
    monkeypatch.setattr(transfer, "discard", lambda path: (sizes.append(path.stat().st_size), discard(path)))
    with serve(CONTENT, length=length) as server:
        file = published(server.url, limit=100_000)
        part(file, CONTENT[:start], '"v1"')
        assert "longer than the 100,000 bytes" in refused(file, InputError)
    if length == "told" or start:  # the server tells it before the first byte
        assert sizes == [start]
    else:
        assert len(sizes) == 1 and 80_000 < sizes[0] <= 100_000
    assert kept() == []


def test_local_file_longer_than_allowed(tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    file = published(f"{tmp_path.as_uri()}/", None, limit=100_000)
    assert "300,000 bytes, more than the 100,000" in refused(file, InputError)


@pytest.mark.parametrize("digest", [None, f"md5:{hashlib.md5(CONTENT).hexdigest()}"])
def test_first_download_is_recorded_and_later_ones_are_held_to_it(cache_directory, tmp_path, digest):
    record = cache_directory / "digests.json"
    record.write_text('{"http://else/where": "sha256:00"}')
    (tmp_path / "file.bin").write_bytes(OTHER)
    with serve(CONTENT) as server, serve(OTHER) as mirror:
        file = published(server.url, digest)
        assert fetch(file).sha256 == DIGEST
        assert json.loads(record.read_text()) == {"http://else/where": "sha256:00", file.urls[0]: f"sha256:{DIGEST}"}
        cache.path_of(file.urls[0]).unlink()
        assert fetch(file).sha256 == DIGEST
        cache.path_of(file.urls[0]).unlink()
        server.content = OTHER
        unknown = published(server.url, None)  # as if the file had been made to have the same MD5
        for mirrors in ([], [mirror.url], [tmp_path.as_uri()]):
            message = refused(unknown, InputError, *mirrors)
            assert f"SHA-256 is {sha256(OTHER)}, expected {DIGEST}" in message
            assert str(record) in message and "delete that entry" in message
        assert kept() == ["digests.json"] and (tmp_path / "file.bin").exists()
        record.write_text("{}")
        assert fetch(unknown).path.read_bytes() == OTHER


def test_recorded_digest_finds_damage_in_the_cache():
    with serve(CONTENT) as server:
        file = published(server.url, None)
        fetch(file).path.write_bytes(OTHER)
        assert fetch(file).path.read_bytes() == CONTENT
        assert len(server.requests) == 2


def test_first_copy_by_hand_or_from_a_local_file_is_recorded(tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    with serve(OTHER) as server:
        file = published(server.url, None)
        assert fetch(file, [tmp_path.as_uri()]) == Fetched(tmp_path / "file.bin", DIGEST)
        assert DIGEST in refused(file, InputError)
        other = Published((f"{server.url}other.bin",), None, LIMIT)
        cache.path_of(other.urls[0]).write_bytes(CONTENT)
        assert fetch(other).sha256 == DIGEST and cache.recorded(other.urls[0]) == DIGEST


@pytest.mark.parametrize("text", ["{", "[]", '{"url": 1}'])
def test_record_that_cannot_be_read(cache_directory, text):
    (cache_directory / "digests.json").write_text(text)
    with serve(CONTENT) as server:
        assert str(cache_directory / "digests.json") in refused(published(server.url, None), InputError)
        assert fetch(published(server.url)).sha256 == DIGEST  # needs no record
    assert (cache_directory / "digests.json").read_text() == text


def test_records_at_the_same_time_are_all_kept():
    urls = [f"http://{number // 2}" for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        standing = list(pool.map(cache.record, urls, [f"{number:064}" for number in range(20)]))
    assert standing == [cache.recorded(url) for url in urls]  # of two with the same URL the first one stands
    assert [int(digest) // 2 for digest in standing] == [number // 2 for number in range(20)]


@pytest.mark.parametrize("digest", [f"sha256:{DIGEST}", None])
@pytest.mark.parametrize("page", [b"\n<!DOCTYPE html><title>Log in</title>", b"<html>gone"])
def test_web_page_is_not_the_file_and_the_next_place_is_asked(digest, page):
    with serve(page) as mirror, serve(CONTENT) as server:
        assert fetch(published(server.url, digest), [mirror.url]).sha256 == DIGEST
    with serve(page) as server:
        assert f"{server.url}file.bin (a web page came instead" in refused(published(server.url, digest), OutsideError)
        assert cache.recorded(f"{server.url}file.bin") is None
    assert not any(".part" in name for name in kept())


def test_empty_first_download_is_not_recorded():
    with serve(b"") as server:
        assert "empty, not the file" in refused(published(server.url, None), InputError)
        assert cache.recorded(f"{server.url}file.bin") is None


# Mirrors and local files


@pytest.mark.parametrize("suffix", ["", "/", "/file.bin", "/file.bin?token=a/b", "/get?name=file.bin"])
def test_mirror_is_the_directory_or_the_file_itself(suffix):
    with serve(OTHER) as official, serve({"some/folder/file.bin": CONTENT, "some/folder/get": CONTENT}) as mirror:
        assert fetch(published(official.url), [f"{mirror.url}some/folder{suffix}"]).sha256 == DIGEST
        assert len(mirror.paths) == 1 and official.requests == []


def test_token_of_a_directory_stays_behind_the_name():
    with serve(CONTENT) as mirror:
        fetch(published("http://127.0.0.1:1/"), [f"{mirror.url}folder?token=x"])
        assert mirror.paths == ["/folder/file.bin?token=x"]


def test_places_are_tried_in_order():
    with serve(CONTENT, statuses=[500] * 9) as one, serve(CONTENT, statuses=[404]) as two, serve(CONTENT) as three:
        file = Published((f"{two.url}file.bin", f"{three.url}moved.bin"), f"sha256:{DIGEST}", LIMIT)
        path = fetch(file, [one.url]).path
        assert path == cache.path_of(file.urls[0]) and path.read_bytes() == CONTENT
        assert [len(server.requests) for server in (one, two, three)] == [transfer.ATTEMPTS, 1, 1]
        assert three.paths == ["/moved.bin"]


@pytest.mark.parametrize("name", ["", "a b.bin"])
def test_local_file_is_used_where_it_lies(tmp_path, name):
    path = tmp_path / "a folder" / "a b.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    file = Published(("http://127.0.0.1:1/a%20b.bin",), f"sha256:{DIGEST}", LIMIT)
    assert fetch(file, [(path.parent / name).as_uri()]) == Fetched(path, DIGEST)
    assert kept() == []


def test_local_file_with_another_digest_stays_and_ends_it(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(OTHER)
    with serve(CONTENT) as server:
        message = refused(published(server.url), InputError, tmp_path.as_uri())
        assert server.requests == []
    assert message.startswith(f"{path}: SHA-256 is {sha256(OTHER)}, expected {DIGEST}; ")
    assert path.read_bytes() == OTHER


# Offline


@pytest.mark.parametrize("variable", ["CONCEPTBITS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_touches_no_network(monkeypatch, tmp_path, variable):
    with serve(CONTENT) as server:
        file = published(server.url)
        path = cache.path_of(file.urls[0])
        monkeypatch.setenv(variable, "1")
        message = refused(file, InputError, server.url, "file:///nowhere")
        assert message.startswith("file.bin: ") and f"{variable} is set" in message
        assert "file:///nowhere/file.bin (no such file)" in message
        assert message.endswith(f"from {server.url}file.bin and save it as {path}")
        (tmp_path / "file.bin").write_bytes(CONTENT)
        assert fetch(file, [server.url, tmp_path.as_uri()]).path == tmp_path / "file.bin"
        path.write_bytes(CONTENT)
        assert fetch(file).path == path
        path.write_bytes(OTHER)
        assert f"{path}: SHA-256 is {sha256(OTHER)}, expected {DIGEST}" in refused(file, InputError)
        assert path.exists() and server.requests == []
        monkeypatch.setenv(variable, "0")
        assert fetch(file).path.read_bytes() == CONTENT


# Proxies


def test_goes_through_the_proxy_of_the_environment(monkeypatch):
    with proxy() as (url, asked), serve(CONTENT) as server:
        monkeypatch.setenv("http_proxy", url)
        file = published(server.url)
        part(file, CONTENT[:100_000], '"v1"')
        assert fetch(file).path.read_bytes() == CONTENT
        assert asked == [file.urls[0]]
        assert server.requests == ["bytes=100000-"]


def test_no_proxy_goes_straight(monkeypatch):
    with proxy() as (url, asked), serve(CONTENT) as server:
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
        assert fetch(published(server.url)).path.read_bytes() == CONTENT
        assert asked == [] and len(server.requests) == 1


def test_proxy_is_named_when_it_fails(monkeypatch):
    with proxy() as (url, asked):
        monkeypatch.setenv("HTTPS_PROXY", url)
        message = refused(published("https://data.invalid/"), OutsideError)
        assert asked == ["data.invalid:443"] * transfer.ATTEMPTS
    assert f"403 Forbidden, through the proxy {url.removeprefix('http://').rstrip('/')}" in message


# Other processes, and the disk

PROGRAM = """
import sys
from stages.__main__ import one_line_errors
from stages.download.fetch import Published, fetch
from stages.download import transfer
transfer.BACK_OFF = 0.0
print("ready", flush=True)
with one_line_errors():
    print(fetch(Published((sys.argv[1],), sys.argv[2] or None, int(sys.argv[3]))).path, flush=True)
"""


def started(file: Published) -> subprocess.Popen:
    """Another process that fetches `file`, and is about to do so now."""
    command = [sys.executable, "-c", PROGRAM, file.urls[0], file.digest or "", str(file.max_bytes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("digest", [f"sha256:{DIGEST}", None])
def test_second_process_waits_for_the_first_and_uses_its_file(digest):
    with serve(CONTENT, stall_at=100_000) as server:
        file = published(server.url, digest)
        first = started(file)
        wait_until(lambda: part(file).exists() and part(file).stat().st_size)
        second = started(file)
        time.sleep(0.3)  # enough for it to ask the server, if it does not wait
        assert len(server.requests) == 1 and second.poll() is None
        server.release.set()
        for process in (first, second):
            output, errors = process.communicate(timeout=20)
            assert (process.returncode, output.strip(), errors) == (0, str(cache.path_of(file.urls[0])), "")
        assert len(server.requests) == 1
    assert cache.path_of(file.urls[0]).read_bytes() == CONTENT


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_killed_or_interrupted_in_the_middle_goes_on_later(number, code):
    with serve(CONTENT, stall_at=100_000) as server:
        file = published(server.url, None)
        unfinished = part(file)
        process = started(file)
        wait_until(lambda: unfinished.exists() and len(server.requests) == 1)
        time.sleep(0.2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == code, errors
        assert errors == ("" if number == signal.SIGKILL else "error: interrupted; the same command resumes\n")
        size = unfinished.stat().st_size
        server.stall_at = None
        assert fetch(file).path.read_bytes() == CONTENT
        assert server.requests == [None, f"bytes={size}-" if size else None]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_named_and_the_line_says_what_to_do():
    with serve(CONTENT) as server:
        file = published(server.url)
        part(file).symlink_to("/dev/full")
        with pytest.raises(OSError) as caught:
            fetch(file)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(part(file)))
        process = started(file)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 2
    assert errors == f"error: {part(file)}: No space left on device; make room on that disk and repeat the command\n"


def test_something_in_the_way_of_the_cache(monkeypatch, tmp_path):
    (tmp_path / "way").write_text("")
    monkeypatch.setenv("CONCEPTBITS_CACHE", str(tmp_path / "way"))
    with serve(CONTENT) as server, pytest.raises(OSError) as caught:
        fetch(published(server.url))
    assert str(tmp_path / "way") in str(caught.value)


def test_local_file_with_a_published_sha256_needs_no_cache(monkeypatch, tmp_path):
    (tmp_path / "way").write_text("")
    monkeypatch.setenv("CONCEPTBITS_CACHE", str(tmp_path / "way"))
    (tmp_path / "file.bin").write_bytes(CONTENT)
    assert fetch(published("http://127.0.0.1:1/"), [tmp_path.as_uri()]).path == tmp_path / "file.bin"
