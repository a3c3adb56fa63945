"""``python -m stages serve``: the page, until it is interrupted."""

import os
import socket
import tempfile
from contextlib import suppress
from importlib.util import find_spec

from pydantic import ValidationError

from stages.errors import InputError
from stages.search import Searcher
from stages.serve.config import Page

#: Connections at a time; those of a browser are up to six.
CONNECTIONS = 1024


def serve(host: str, port: int, model: str | None) -> None:
    """Serve the page of ``data/index`` of the current directory.

    Args:
        host, port: as of :class:`Page`.
        model: a published network, see :meth:`Searcher.open`.

    Raises:
        InputError: Gradio is not installed, the index cannot be searched, or the address cannot be had.
    """
    if find_spec("gradio") is None:
        raise InputError("serve: needs Gradio, which is not installed; run: pip install -e '.[page]'")
    try:
        page = Page(host=host, port=port)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InputError(f"serve: --{problem['loc'][0]} {problem['input']}: {problem['msg'].lower()}") from None
    searcher = Searcher.open(model=model)
    with tempfile.TemporaryDirectory(prefix="conceptbits-page-") as directory, bound(page) as listening:
        # Nothing is uploaded to Gradio; should it have something to write, it is here, and gone afterwards.
        os.environ |= {"GRADIO_TEMP_DIR": directory, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        run(page, searcher, listening)


def run(page: Page, searcher: Searcher, listening: socket.socket) -> None:
    """Serve the page of a searcher, at a socket that listens, until it is interrupted."""
    import uvicorn

    from stages.serve.answers import Answers
    from stages.serve.app import make_app
    from stages.serve.protocol import Protocol

    answers = Answers(searcher)
    answers.warm_up()
    name, port = listening.getsockname()[:2]
    hosts = ["127.0.0.1", "localhost", "[::1]", page.host] if page.is_loopback else None
    app = make_app(answers, hosts)
    config = uvicorn.Config(
        app, http=Protocol, ws="none", log_level="warning", access_log=False, limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30, server_header=False, timeout_graceful_shutdown=5,
    )  # fmt: skip
    shown = f"[{name}]" if ":" in name else name

    class Announced(uvicorn.Server):
        """Says where the page is once it is there, and heeds Ctrl-C itself."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"http://{shown}:{port} shows {answers.title}; Ctrl-C ends it", flush=True)
            if not page.is_loopback:
                print("whoever can reach this address can search here: there is no login", flush=True)

    with suppress(KeyboardInterrupt):  # how it is ended
        Announced(config).run([listening])


def bound(page: Page) -> socket.socket:
    """A socket that listens where the page is to be.

    Raises:
        InputError: the address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(page.host, page.port, type=socket.SOCK_STREAM)[0]
        # Named as TCP, or asyncio would not have small packets sent at once, and an answer would wait for 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(CONNECTIONS)
        except OSError:
            listening.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"serve: cannot listen at {page.host}:{page.port} ({reason}); give another --host or --port"
        ) from None
    return listening
