"""What CI makes of the answers of a database of vulnerabilities: a local server that speaks as OSV's does."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from stage_runner import ROOT

AFFECTED = "moto"


class Database(BaseHTTPRequestHandler):
    """Knows of one vulnerability, if it is told of one."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
        known = {"id": "OSV-1", "summary": "words", "aliases": [], "modified": "2026-01-01T00:00:00Z", "affected": [
            {"package": {"name": AFFECTED, "ecosystem": "PyPI"},
             "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}]},
        ]}  # fmt: skip
        body = json.dumps({"vulns": [known]} if asked == self.server.affected else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def database() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Database) as server:
        server.affected = ""
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def audit(port: int) -> tuple[int, list[str]]:
    command = [sys.executable, ROOT / ".ci" / "audit.py", "-s", "osv", "--osv-url", f"http://127.0.0.1:{port}/v1/query"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


@pytest.mark.slow
def test_a_known_vulnerability_fails(database: ThreadingHTTPServer) -> None:
    code, (told,) = audit(database.server_port)
    assert code == 0 and " 0 vulnerabilities; all are held to the digests" in told
    database.affected = AFFECTED
    code, (found, told) = audit(database.server_port)
    assert code == 1 and found.startswith(f"audit: {AFFECTED} ") and found.endswith(": OSV-1, mended in 99.1")
    assert " 1 vulnerabilities;" in told


def test_no_answer_is_told(database: ThreadingHTTPServer) -> None:
    database.server_close()
    code, (told,) = audit(database.server_port)
    assert code == 0 and told.startswith("audit: no answer (") and "digests of requirements.lock" in told
