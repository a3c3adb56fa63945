"""The search page without a browser: its HTML, its answers, what it refuses, and that no file can be had through it."""

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import psutil
import pytest
from page_server import PATIENCE, TAGS, Elements, distances_of, ids_of, serve_page
from PIL import Image
from stage_runner import ROOT, copy

from stages.artifacts import MAP, Provenance
from stages.errors import InputError
from stages.index.opened import BinaryIndex
from stages.map.artifact import ImageMap, write_map
from stages.search import Searcher
from stages.search.searcher import TOGETHER
from stages.search.together import Together
from stages.serve import command, markup
from stages.serve.answers import Answers
from stages.serve.config import MAX_TEXT, MAX_UPLOAD
from stages.serve.guard import Budget, Guard
from stages.serve.points import GRID, POINTS, points, read_points

EVIL = "<script>alert(1)</script>\"' onerror=alert(1) &amp; <img src=x>"


@pytest.fixture(scope="session")
def searcher(tiny_run: Path) -> Searcher:
    return Searcher.open(tiny_run)


def png(width: int, height: int) -> bytes:
    """An image of one colour, of few bytes whatever its size."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


# ---- HTML


def cells(html: str) -> dict[str, set[tuple[float, float]]]:
    """Where a strip has cells of each kind: (x, y) of the upper left corners."""
    return {
        kind: {(float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)", path)}
        for kind, path in re.findall(r'<path class="([\w-]+)" d="([^"]*)"', html)
    }


@pytest.mark.parametrize("bits", [8, 32, 64, 128])
def test_strip_shows_each_bit_once_and_marks_those_that_differ(bits):
    rng = np.random.default_rng(bits)
    code, other = rng.integers(0, 2, (2, bits))
    places = {(float(i % 32), round(i // 32 * markup.LINE, 4)): i for i in range(bits)}
    corners = cells(markup.strip(code, other))
    marks = corners.pop("cb-mark")
    found = {kind: {places[x, round(y, 4)] for x, y in some} for kind, some in corners.items()}
    differs = code != other
    for kind, expected in (("cb-0", ~differs & (code == 0)), ("cb-1", ~differs & (code == 1)),
                           ("cb-d0", differs & (code == 0)), ("cb-d1", differs & (code == 1))):  # fmt: skip
        assert found.get(kind, set()) == set(np.flatnonzero(expected).tolist())
    assert len(marks) == differs.sum() and {x for x, _ in marks} == {float(i % 32) for i in np.flatnonzero(differs)}
    assert cells(markup.strip(code)).keys() == {"cb-0", "cb-1"}


def test_a_code_in_words():
    code, other = np.array([0, 1, 1, 0, 0, 0, 0, 1] * 2), np.array([0, 1, 1, 0, 0, 0, 0, 1] * 2)
    other[[3, 15]] ^= 1
    assert markup.in_words(code, other) == "code 01100001 01100001; 2 of 16 bits differ: 3, 15"
    assert markup.in_words(code, code) == "code 01100001 01100001; all bits agree"
    assert markup.differing(1, 16) == "1 of 16 bits differs"


def test_concepts_stand_side_by_side():
    names = ["dog", "boat", "sun", "moon"]
    html = markup.concepts(names, np.array([0.9, 0.1, 0.0, 0.0]), np.array([0.25, 0.0, 0.75, 0.0]))
    rows = re.findall(r"<tr><td>(.*?)</td><th scope=\"row\">(\w+)</th><td>(.*?)</td></tr>", html)
    assert [name for _, name, _ in rows] == ["dog", "sun", "boat"]
    assert [[re.search(r">(\d+)%<", cell)[1] for cell in (query, hit)] for query, _, hit in rows] == [
        ["90", "25"], ["0", "75"], ["10", "0"]
    ]  # fmt: skip
    assert "* 0.900)" in rows[0][0] and "* 0.250)" in rows[0][2]


def test_no_word_becomes_markup():
    """Names of files, labels, concepts, texts and messages may be anything."""
    bits, shares = np.array([0, 1] * 4), np.array([0.5, 0.5])
    hit = markup.Shown(5, [EVIL, "b"], EVIL, bits, shares, 3, 0.5)
    html = markup.answer(
        EVIL, markup.query_picture(None, EVIL), bits, shares, [hit], [EVIL, "other"], EVIL
    ) + markup.failure(EVIL) + markup.beginning([1], [[EVIL]])  # fmt: skip
    elements = Elements(html)
    assert {tag for tag, _ in elements.tags} == TAGS
    elements.require_harmless()
    assert elements.text.count(EVIL) == 7  # the text and the title twice, in the template alone, ...
    assert any(attributes.get("aria-label") == f"Search with image 5: {EVIL}, b" for _, attributes in elements.tags)


# ---- the map


def plain_map(n: int) -> ImageMap:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, n)).astype(np.float32) * [[3], [1]]
    return ImageMap(np.arange(n) * 2, x.astype(np.float32), y.astype(np.float32), np.arange(n, dtype=np.int32) % 3 - 1,
                    Provenance("map"))  # fmt: skip


def test_points_lie_on_a_grid_in_their_proportions():
    found = plain_map(500)
    told = points(found, {0: ["dog", "cat", "sun", "moon"]}, 600)
    x, y = np.array(told["x"]), np.array(told["y"])
    assert x.min() == 0 and y.min() == 0 and x.max() == GRID - 1 == told["grid"] - 1
    step = (GRID - 1) / np.ptp(found.x)
    np.testing.assert_allclose(x, (found.x - found.x.min()) * step, atol=0.51)
    np.testing.assert_allclose(y, (found.y.max() - found.y) * step, atol=0.51)  # y goes down on a screen
    assert told["ids"] == found.id.tolist() and told["coarse"] == found.coarse.tolist() and told["total"] == 600
    assert told["names"] == {0: "coarse 0: dog, cat, sun", 1: "coarse 1"}


def test_of_very_many_points_a_sample_is_sent():
    found = plain_map(POINTS + 1000)
    told = points(found, {}, len(found.id))
    assert len(set(told["ids"])) == POINTS
    assert told == points(found, {}, len(found.id))
    row = np.searchsorted(found.id, told["ids"])
    assert told["coarse"] == found.coarse[row].tolist()
    assert np.corrcoef(told["x"], found.x[row])[0, 1] > 0.999


def test_a_map_that_is_not_there_or_of_other_data_is_a_line(served_project, tmp_path, monkeypatch):
    copy(["data"], served_project, tmp_path)
    monkeypatch.chdir(tmp_path)
    index = BinaryIndex(tmp_path / "data/index")
    removed = index.ids[:3].tolist()
    index.remove(removed)
    told = read_points(index)
    assert len(told["ids"]) == told["total"] == len(index) and not set(removed) & set(told["ids"])
    whole = replace(plain_map(10), provenance=Provenance("map", dataset="f" * 64))
    write_map(whole)
    assert "another data set" in read_points(index)["problem"]
    MAP.write_bytes(b"no Parquet")
    assert str(MAP) in read_points(index)["problem"]
    MAP.unlink()
    assert read_points(index)["problem"] == "data/map.parquet: not found; rebuild it with `dvc repro map`"


# ---- threads


def test_what_waits_is_done_together():
    begun, go_on, batches = threading.Event(), threading.Event(), []

    def work(items):
        batches.append(list(items))
        begun.set()
        assert go_on.wait(PATIENCE)
        return [item * 10 for item in items]

    together = Together(work, 4)
    with ThreadPoolExecutor(12) as threads:
        first = threads.submit(together, 0)
        assert begun.wait(PATIENCE)
        others = [threads.submit(together, item) for item in range(1, 10)]
        while len(together._waiting) < 9:
            time.sleep(0.01)
        go_on.set()
        assert [future.result(PATIENCE) for future in [first, *others]] == [item * 10 for item in range(10)]
    assert batches[0] == [0] and [len(batch) for batch in batches] == [1, 4, 4, 1]
    assert sorted(item for batch in batches for item in batch) == list(range(10))


def test_what_fails_together_fails_for_each():
    def work(items):
        raise InputError("no model")

    together = Together(work, 4)
    with ThreadPoolExecutor(5) as threads:
        for future in [threads.submit(together, item) for item in range(5)]:
            with pytest.raises(InputError, match="no model"):
                future.result(PATIENCE)
    assert Together(lambda items: items, 4)(7) == 7


def test_a_budget_lets_others_wait():
    async def story() -> list[str]:
        budget, told, enough = Budget(10), [], asyncio.Event()

        async def holder(name: str, size: int, until: asyncio.Event | None = None) -> None:
            async with budget.hold(size):
                told.append(name)
                if until is not None:
                    await until.wait()

        first = asyncio.create_task(holder("first", 6, enough))
        await asyncio.sleep(0)
        others = [asyncio.create_task(holder("too much", 5)), asyncio.create_task(holder("little", 4))]
        while len(told) < 2:
            await asyncio.sleep(0)
        assert told == ["first", "little"]
        enough.set()
        await asyncio.gather(first, *others)
        async with asyncio.timeout(PATIENCE), budget.hold(10):  # all has been given back
            return told

    assert asyncio.run(story()) == ["first", "little", "too much"]


def test_searches_at_once_find_what_each_finds_alone(searcher, pictures):
    queries = pictures[: TOGETHER + 20]
    with ThreadPoolExecutor(len(queries)) as threads:
        found = list(threads.map(lambda data: searcher.by_image(data, top=5), queries))
        words = list(threads.map(lambda text: searcher.by_text(text, top=5), ["a dog and a boat", "two suns"] * 8))
    features = [hits.feature for hits in found]
    alone = [searcher.by_image(data, top=5) for data in queries]
    np.testing.assert_allclose(features, [hits.feature for hits in alone], atol=2e-3)  # float16 of the same to a digit
    agree = np.mean([np.array_equal(one.code, other.code) for one, other in zip(found, alone, strict=True)])
    assert agree > 0.9  # a bit whose value is all but 0 may fall either way
    expected = [searcher.by_text(text, top=5).ids for text in ("a dog and a boat", "two suns")]
    for place, hits in enumerate(words):
        np.testing.assert_array_equal(hits.ids, expected[place % 2])


def test_so_many_candidates_are_reranked(searcher, pictures):
    wide, exact = searcher.by_image(pictures[0], top=40), searcher.by_image(pictures[0], top=5, rerank=40)
    scores = searcher.features_of(wide.ids) @ wide.feature
    np.testing.assert_array_equal(exact.ids, wide.ids[np.argsort(-scores, kind="stable")[:5]])
    np.testing.assert_allclose(exact.scores, np.sort(scores)[::-1][:5], atol=1e-6)
    few = searcher.by_image(pictures[0], top=8, rerank=2)  # not fewer candidates than hits
    assert set(few.ids) == set(wide.ids[:8])


# ---- answers


def test_answers_are_those_of_the_searcher(page, searcher, pictures):
    image = int(searcher.index.ids[7])
    for query, hits in (
        (pictures[0], searcher.by_image(pictures[0], top=12)),
        ("a dog and a boat", searcher.by_text("a dog and a boat", top=12)),
        (image, searcher.by_id(image, top=12)),
    ):
        status, html = page.search(query, top=12)
        assert status == 200
        assert (ids_of(html), distances_of(html)) == (hits.ids.tolist(), hits.distances.tolist())
        bits = np.unpackbits(hits.code)
        codes = np.unpackbits(searcher.index.codes_at(searcher.index.rows_of(hits.ids)), axis=1)
        for code in codes:
            assert markup.strip(code, bits) in html and markup.strip(bits, code) in html
        hit = hits.to_dicts()[0]
        assert f"{', '.join(hit['labels'])}" in html and "cb-concepts" in html
    assert page.search(image)[1].count("cb-look") == 20


def test_reranked_answers_have_cosines(page, searcher):
    hits = searcher.by_text("a dog and a boat", top=6, rerank=200)
    _, html = page.search("a dog and a boat", top=6, rerank=200)
    assert ids_of(html) == hits.ids.tolist()
    assert re.findall(r"features\">(-?[\d.]+)</span>", html) == [f"{score:.3f}" for score in hits.scores]
    assert "among the nearest 200 of 300 images" in html


def test_an_index_without_features_or_concepts_is_searched_all_the_same(served_project, tmp_path, monkeypatch):
    copy(["data", "models", "params.yaml"], served_project, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/features.h5").unlink()
    answers = Answers(Searcher.open())
    answers.warm_up()
    html = answers.by_id(int(answers.searcher.index.ids[0]), 5, 0)
    assert len(ids_of(html)) == 5 and "cb-concepts" not in html
    with pytest.raises(InputError, match=r"features\.h5"):
        answers.by_id(int(answers.searcher.index.ids[0]), 5, 100)


def test_thumbnails_are_those_of_the_index(page, searcher):
    image = int(searcher.index.ids[3])
    for _ in range(2):
        status, headers, content = page.ask("GET", f"/thumbnail/{image}")
        assert (status, headers["content-type"]) == (200, "image/jpeg")
        assert content == searcher.index.thumbnails(np.array([image]))[image]
    for unknown in (10**9, 2**63):
        assert page.ask("GET", f"/thumbnail/{unknown}")[0] == 404


def test_the_beginning_and_the_map(page, searcher):
    status, _, content = page.ask("GET", "/beginning")
    assert status == 200 and len(set(ids_of(content.decode()))) == 24
    assert set(ids_of(content.decode())) <= set(searcher.index.ids.tolist())
    status, _, content = page.ask("GET", "/map")
    assert status == 200 and json.loads(content)["ids"] == sorted(searcher.index.ids.tolist())


def test_many_at_once_are_all_answered(page, pictures):
    expected = [page.search(data, top=3)[1] for data in pictures[:8]]
    with ThreadPoolExecutor(50) as threads:
        found = list(threads.map(lambda i: page.search(pictures[i % 8], top=3), range(200)))
    assert {status for status, _ in found} == {200}
    same = np.mean([ids_of(html) == ids_of(expected[i % 8]) for i, (_, html) in enumerate(found)])
    assert same > 0.8  # see test_searches_at_once_find_what_each_finds_alone


# ---- what is refused


def test_what_is_no_image_is_one_line_and_harms_nothing(page, pictures):
    for data, status, words in (
        (b"", 400, "the file is empty"),
        (b"no image at all", 422, "no image of a known kind"),
        (pictures[0][: len(pictures[0]) // 2], 422, "cannot be decoded"),
        (png(10_000, 10_000), 422, "10000x10000 pixels, more than 50,000,000"),
        (png(7_000, 7_000), 422, "a decompression bomb"),
        (b"\x89PNG\r\n\x1a\n" + bytes(1000), 422, ""),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "no image of a known kind"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', 422, "no image"),
    ):
        found, html = page.search(data)
        assert (found, words in html, html.count("<p ")) == (status, True, 1), html
        assert 'class="cb-failure"' in html and "/" not in html.replace("</p>", "")
    assert page.search(pictures[0])[0] == 200


def test_uploads_are_bounded_before_they_are_read(page):
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(MAX_UPLOAD + 1)}
    status, _, content = page.ask("POST", "/search", None, headers)  # nothing of it was sent
    assert status == 413 and b"16.0 MiB; give a smaller one" in content
    status, _, _ = page.ask("POST", "/search", None, {"Transfer-Encoding": "chunked", "Content-Type": "image/png"})
    assert status == 411
    status, _, content = page.ask("POST", "/search", b'"' + b"a" * 9000 + b'"', {"Content-Type": "application/json"})
    assert status == 413


@pytest.mark.parametrize(("path", "body", "status", "words"), [
    ("/search?top=0", {"id": 5}, 400, "between 1 and 100"),
    ("/search?top=101", {"id": 5}, 400, "between 1 and 100"),
    ("/search?top=many", {"id": 5}, 400, "between 1 and 100"),
    ("/search?rerank=-1", {"id": 5}, 400, "between 0 and 1000"),
    ("/search", {"id": -1}, 400, "whole number"), ("/search", {"id": "5"}, 400, "whole number"),
    ("/search", {"id": True}, 400, "whole number"), ("/search", {"id": 2**63}, 400, "whole number"),
    ("/search", {"id": 10**12}, 422, "has no such image"),
    ("/search", {"text": "a" * (MAX_TEXT + 1)}, 400, "at most 500 characters"),
    ("/search", {"text": 5}, 400, "at most"), ("/search", {"text": "  "}, 422, "the text is empty"),
    ("/search", {"text": "a dog", "id": 5}, 400, "a text or an id"), ("/search", [], 400, "a text or an id"),
    ("/search", {"path": "/etc/passwd"}, 400, "a text or an id"), ("/search", {}, 400, "a text or an id"),
])  # fmt: skip
def test_bad_questions_are_one_line(page, path, body, status, words):
    found, _, content = page.ask("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    assert (found, words in content.decode()) == (status, True), content
    for broken in (b"{", b"[" * 5000, b"\xff"):
        assert page.ask("POST", "/search", broken, {"Content-Type": "application/json"})[0] == 400


def test_another_page_gets_nothing(page):
    """Neither one whose name points here, nor one that lets the visitor's browser ask."""
    assert page.ask("GET", "/", headers={"Host": f"127.0.0.1:{page.port}"})[0] == 200
    assert page.ask("GET", "/", headers={"Host": "localhost"})[0] == 200
    for host in ("evil.example", f"evil.example:{page.port}", "127.0.0.1.evil.example", "", "localhost@evil.example"):
        assert page.ask("GET", "/map", headers={"Host": host})[0] in (400, 403)
    for site in ("cross-site", "same-site"):
        for path in ("/", "/map", "/thumbnail/5"):
            assert page.ask("GET", path, None, {"Sec-Fetch-Site": site, "Sec-Fetch-Dest": "iframe"})[0] == 403
        assert page.ask("POST", "/search", b"{}", {"Sec-Fetch-Site": site, "Sec-Fetch-Dest": "document"})[0] == 403
        assert page.ask("GET", "/", None, {"Sec-Fetch-Site": site, "Sec-Fetch-Dest": "document"})[0] == 200  # a link
    for path in ("/", "/map", "/search", "/gradio_api/info"):
        _, headers, _ = page.ask("GET", path, headers={"Origin": "http://evil.example"})
        assert not [name for name in headers if name.startswith("access-control")]
        assert "connect-src 'self'" in headers["content-security-policy"] and headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(("path", "headers", "status"), [
    ("/?page=none&deep_link=none", {}, 200), ("/", {"X-Gradio-Server": "::: x"}, 200),
    ("/", {"X-Forwarded-Host": "search.example:8443, inner"}, 200), ("/", {"X-Forwarded-Host": "[::1"}, 400),
    ("/static/" + "a" * 300, {}, 404), ("/static" + "/a" * 2500, {}, 404),
])  # fmt: skip
def test_gradio_is_given_nothing_to_stumble_over(page, path, headers, status):
    assert page.ask("GET", path, None, headers)[0] == status


def test_garbage_behind_a_request_is_one_line_on_the_log(page):
    place = page.log.stat().st_size
    head = b" HTTP/1.1\r\nHost: localhost\r\n"
    json_body = b"Content-Type: application/json\r\nContent-Length: 8\r\n\r\n{\"id\":3}"
    for request in (b"GET /" + head + b"\r\n", b"GET /none" + head + b"\r\n", b"POST /search" + head + json_body,
                    b"POST /search" + head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"):  # fmt: skip
        for garbage in (b"\0\0\0\0", b"GET / HTTP/9.9\r\n\r\n"):
            for pause in (0, 0.002):
                with socket.create_connection(("127.0.0.1", page.port), PATIENCE) as connection:
                    connection.sendall(request)
                    time.sleep(pause)
                    with suppress(ConnectionError):
                        connection.sendall(garbage)
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(2**16):
                            pass
    assert page.search(5)[0] == 200
    said = page.log.read_text()[place:].splitlines()
    assert said and set(said) == {"WARNING:  Invalid HTTP request received."}


def test_hosts_have_names_that_can_be_addresses():
    """Also where the page is for a network, whose machines may call it anything."""
    guard = Guard(None, None)

    def refused(host: bytes, *others: bytes) -> bool:
        headers = [(b"host", host), *((b"X-Forwarded-Host", other) for other in others)]
        scope = {"path": "/", "raw_path": b"/", "method": "GET", "headers": headers}
        return guard._refused(scope) is not None

    for name in (b"localhost", b"a-b_c.example.", b"10.0.0.1:80", b"[::1]", b"[fe80::1]:7860", b"4.example"):
        assert not refused(name), name
    for name in (b"", b"[::1", b"::1", b"[::1%<b>]", b"999.9.9.9", b"a b", b"<b>", b"a/b", b"a:b", b"\xe9"):
        assert refused(name) and refused(b"a", name) and refused(b"a", name, b"a"), name
    assert not refused(b"a" * 253, b"b") and refused(b"a" * 254)  # of which no pattern takes the square


# ---- no file of the host


def file_addresses(path: Path) -> list[str]:
    """All ways in which a file might be asked for by its path."""
    up = "../" * 12
    plain = [f"{prefix}{where}" for where in (str(path), up + str(path).lstrip("/")) for prefix in (
        "/gradio_api/file=", "/file=", "/gradio_api/file/", "/file/", "/static/", "/assets/", "/static", "/svelte/",
        "/gradio_api/proxy=file://", "/proxy=file://", "/custom_component/", "/thumbnail/", "//", "/",
    )]  # fmt: skip
    quoted = [quote(address, safe="/=") for address in plain] + [address.replace("/..", "/%2e%2e") for address in plain]
    slashes = [address.replace("../", "..%2f") for address in plain] + [a.replace("../", "..\\") for a in plain]
    return sorted({*plain, *quoted, *slashes})


def test_no_file_can_be_had_by_its_path(page, pictures):
    """Neither of the project, nor of the host, nor what others have uploaded, wherever that might be kept."""
    assert page.search(pictures[1])[0] == 200
    (cache,) = page.temporary.glob("conceptbits-page-*")  # from where Gradio by itself gives files out
    secret = cache / "upload.png"
    secret.write_bytes(pictures[1])
    try:
        for path in (page.project / "params.yaml", page.project / "data/dataset.json", Path("/etc/passwd"), secret):
            content = path.read_bytes()
            for address in file_addresses(path):
                status, _, found = page.ask("GET", address)
                assert status in (403, 404), (address, status)
                assert content not in found, address
        relative = ("params.yaml", "data/dataset.json", "data/index/index.json")
        for prefix in ("/gradio_api/file=", "/file=", "/static/", "/"):
            assert [page.ask("GET", prefix + name)[0] for name in relative] == [404] * len(relative)
    finally:
        secret.unlink()


def test_an_upload_is_written_nowhere(page, pictures):
    def files(directory: Path) -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}

    before = files(page.project)
    buffer = io.BytesIO()
    Image.effect_noise((1500, 1500), 80).save(buffer, "PNG")  # two megabytes, more than is ever kept in a buffer
    assert page.search(buffer.getvalue())[0] == 200
    assert page.search(pictures[2])[0] == 200
    assert files(page.temporary) == {}
    assert {path: time for path, time in files(page.project).items() if ".lock" not in path} == before
    process = psutil.Process(page.process.pid)
    opened = [file.path for file in process.open_files()]
    assert not [path for path in opened if path.startswith(str(page.temporary))]
    assert process.io_counters().write_bytes < 2**20  # of its whole life


@pytest.mark.slow
def test_routes_of_gradio_are_closed():
    """All of them but the program for the browser; should a new version have new ones, those as well."""
    from fastapi import FastAPI

    from stages.serve.blocks import blocks, mounted

    app = mounted(FastAPI(openapi_url=None, docs_url=None, redoc_url=None), blocks("a title"))
    inner = next(route.app for route in app.routes if hasattr(route, "app") and hasattr(route.app, "routes"))
    guard, reached = Guard(app, None), set()

    def every(routes):
        for route in routes:
            if hasattr(route, "path"):
                yield route.path
            yield from every(getattr(getattr(route, "original_router", None), "routes", ()))

    paths = set(every(inner.routes))
    assert len(paths) > 40 and "/gradio_api/file={path_or_url:path}" in paths | {f"/gradio_api{path}" for path in paths}
    for path in paths:
        for prefix in ("", "/gradio_api"):
            asked = prefix + re.sub(r"\{[^}]*\}", "x", path)
            for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
                scope = {"path": asked, "raw_path": asked.encode(), "method": method, "headers": []}
                if guard._refused(scope) is None:
                    reached.add((method, asked))
    assert reached == {("GET", path) for path in ("/", "/theme.css", "/favicon.ico", "/static/x", "/assets/x")}


def test_only_this_machine_is_listened_to(page):
    listening = [
        one.laddr.ip for one in psutil.Process(page.process.pid).net_connections() if one.status == psutil.CONN_LISTEN
    ]  # fmt: skip
    assert listening == ["127.0.0.1"]


# ---- the command


def ended(directory: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "stages", "serve", *arguments], cwd=directory, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr.strip()


def test_without_gradio_the_command_says_what_to_install(served_project, tmp_path):
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'gradio' else find(name, package)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "stages", "serve"], cwd=served_project, capture_output=True, text=True, timeout=PATIENCE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path[1:]])},
    )  # fmt: skip
    expected = "error: serve: needs Gradio, which is not installed; run: pip install -e '.[page]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_no_index_and_no_address_are_one_line(served_project, tmp_path, monkeypatch):
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    code, error = ended(tmp_path)
    assert code == 2 and error == "error: data/index/index.json: not found; rebuild it with `dvc repro index`"
    monkeypatch.chdir(served_project)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"listen at 127\.0\.0\.1:{port} .*give another --host"):
            command.serve("127.0.0.1", port, None)
    with pytest.raises(InputError, match="serve: --port 70000"):
        command.serve("127.0.0.1", 70000, None)
    with pytest.raises(InputError, match=r"serve: cannot listen at no\.such\.host"):
        command.serve("no.such.host.invalid", 0, None)


@pytest.mark.slow
def test_ctrl_c_ends_it_without_a_word(served_project, tmp_path):
    with serve_page(served_project, tmp_path / "temporary") as server:
        os.kill(server.process.pid, signal.SIGINT)
        assert server.process.wait(PATIENCE) == 0
        assert server.process.stdout.read() == ""
        assert list(server.temporary.iterdir()) == []
