"""The search page as a process of its own, and questions to it."""

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from stages.artifacts import MAP, Provenance
from stages.index.opened import BinaryIndex
from stages.map.artifact import ImageMap, write_map

#: Seconds that anything may take here.
PATIENCE = 60
#: Elements that answers are made of.
TAGS = frozenset((
    "section", "div", "p", "q", "span", "ol", "li", "button", "img", "svg", "path", "template", "table", "thead",
    "tbody", "tr", "th", "td", "small", "br", "b",
))  # fmt: skip


@dataclass(frozen=True)
class PageServer:
    """A page that is served.

    Attributes:
        project: what it serves; temporary: where it may write; log: what it says on standard error.
    """

    process: subprocess.Popen
    port: int
    project: Path
    temporary: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and content of an answer; `path` is sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def search(self, query: bytes | str | int, **options: int) -> tuple[int, str]:
        """Status and HTML of a search: with the content of a file, with a text, or with an id."""
        kind = "application/octet-stream"
        if not isinstance(query, bytes):
            kind = "application/json"
            query = json.dumps({"text" if isinstance(query, str) else "id": query}).encode()
        path = "/search?" + "&".join(f"{name}={value}" for name, value in options.items())
        status, _, content = self.ask("POST", path, query, {"Content-Type": kind})
        return status, content.decode()


class Elements(HTMLParser):
    """Start tags with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def named(self, kind: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if kind in (attributes.get("class") or "").split()]

    def require_harmless(self) -> None:
        """No other elements than those of an answer, nothing that runs, nothing from elsewhere."""
        for tag, attributes in self.tags:
            assert tag in TAGS, tag
            assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcdoc")], attributes
            assert re.fullmatch(r"thumbnail/\d+", attributes.get("src", "thumbnail/0")), attributes


@contextmanager
def serve_page(project: Path, temporary: Path, program: Sequence[str] = ("-m", "stages")) -> Iterator[PageServer]:
    """The page of a project; what it writes to a temporary directory, it writes to `temporary`.

    Args:
        program: of Python, that has the command ``serve``.
    """
    temporary.mkdir()
    log = temporary.with_name("page.log")
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, *program, "serve", "--port", "0"], cwd=project, stdout=subprocess.PIPE, stderr=said,
            text=True, env=os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        found = re.match(r"http://127\.0\.0\.1:(\d+) ", process.stdout.readline())
        assert found, f"the page has not started: {process.wait(PATIENCE)}, {log.read_text()}"
        yield PageServer(process, int(found[1]), project, temporary, log)
    finally:
        process.kill()
        process.wait(PATIENCE)
        process.stdout.close()


def write_plain_map(project: Path) -> ImageMap:
    """A map of a project's index whose images lie in rows, ten steps apart, in the order of their ids."""
    index = BinaryIndex(project / "data/index")
    ids = np.sort(index.ids)
    y, x = np.divmod(np.arange(len(ids)), 20)
    coarse = (np.arange(len(ids)) % 4 - 1).astype(np.int32)
    made = Provenance("map", index.provenance.dataset, index.provenance.model)
    found = ImageMap(ids, x.astype(np.float32), -y.astype(np.float32), coarse, made)
    write_map(found, project / MAP)
    return found


def ids_of(html: str) -> list[int]:
    """The images of an answer, in its order."""
    return [int(found) for found in re.findall(r'class="cb-image" data-id="(\d+)"', html)]


def distances_of(html: str) -> list[int]:
    """The distances of an answer, in its order."""
    return [int(found) for found in re.findall(r'class="cb-line"><b>(\d+)</b>', html)]
