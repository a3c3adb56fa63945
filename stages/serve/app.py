"""The routes of the page, behind :class:`stages.serve.guard.Guard`."""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response

from stages.errors import InputError, OutsideError
from stages.serve.answers import Answers
from stages.serve.blocks import blocks, mounted
from stages.serve.config import MAX_RERANK, MAX_TEXT, MAX_TOP, MAX_UPLOAD, MAX_UPLOADS, THREADS, TOP, UPLOAD_SECONDS
from stages.serve.guard import Budget, Guard
from stages.serve.markup import failure
from stages.serve.points import as_bytes, read_points

ROOM = Path(__file__).parent

#: Bytes of a question that is no upload: a text or an id as JSON.
MAX_QUESTION = 8192

TOPS, RERANKS = f"top: between 1 and {MAX_TOP} images", f"rerank: between 0 and {MAX_RERANK} images"
Count = TypeAdapter(Annotated[int, Field(ge=1, le=MAX_TOP)])
Rerank = TypeAdapter(Annotated[int, Field(ge=0, le=MAX_RERANK)])
Text = TypeAdapter(Annotated[str, Field(max_length=MAX_TEXT)])
Image = TypeAdapter(Annotated[int, Field(ge=0, lt=2**63, strict=True)])


class Refused(Exception):
    """A question that is not answered: status and one line why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def make_app(answers: Answers, hosts: list[str] | None) -> Guard:
    """The whole application.

    Args:
        hosts: as of :class:`Guard`.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    routes = Routes(answers)
    app.add_route("/search", routes.search, methods=["POST"])
    app.add_route("/beginning", routes.beginning)
    app.add_route("/map", routes.map)
    app.add_route("/thumbnail/{image:int}", routes.thumbnail)
    app.add_route("/page.js", routes.script)
    app.add_route("/page.css", routes.style)
    return Guard(mounted(app, blocks(answers.title)), hosts)


class Routes:
    """What the page asks for. Work is done by threads, which wait for the encoder together."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="query")
        self._uploads = Budget(MAX_UPLOADS)
        self._points = as_bytes(read_points(answers.searcher.index))
        self._files = {name: (ROOM / name).read_bytes() for name in ("page.js", "page.css")}

    async def search(self, request: Request) -> Response:
        """An answer to the body: an image file, or a JSON object with ``text`` or ``id``; ``top`` and ``rerank`` are
        in the query of the address.
        """
        try:
            return HTMLResponse(await self._searched(request))
        except ClientDisconnect:
            return Response(status_code=400)
        except Refused as error:
            return HTMLResponse(failure(str(error)), error.status)
        except InputError as error:
            return HTMLResponse(failure(_for_the_page(str(error))), 422)
        except OutsideError as error:
            return HTMLResponse(failure(str(error)), 502)

    async def _searched(self, request: Request) -> str:
        top = _checked(Count, request.query_params.get("top", TOP), TOPS)
        rerank = _checked(Rerank, request.query_params.get("rerank", 0), RERANKS)
        is_json = request.headers.get("content-type", "").split(";")[0] == "application/json"
        limit = MAX_QUESTION if is_json else MAX_UPLOAD
        size = _size(request, limit)
        try:
            # The time that the answer takes does not count; that of the upload, and of waiting for it, does.
            async with asyncio.timeout(UPLOAD_SECONDS) as deadline, self._uploads.hold(size):
                body = await _body(request, size)
                deadline.reschedule(None)
                return await self._in_thread(self._question(body, is_json), top, rerank)
        except TimeoutError:
            raise Refused(503, "the upload took too long, or too many others are waiting; try it again") from None

    def _question(self, body: bytes, is_json: bool) -> Callable[[int, int], str]:
        """What answers a body when it is given `top` and `rerank`."""
        if not is_json:
            if not body:
                raise Refused(400, "the file is empty; give an image file")
            return lambda top, rerank: self._answers.by_image(body, top, rerank)
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or len(content) != 1 or not content.keys() <= {"text", "id"}:
            raise Refused(400, "ask with a JSON object that has a text or an id")
        if "text" in content:
            text = _checked(Text, content["text"], f"a text has at most {MAX_TEXT} characters, all of them Unicode")
            return lambda top, rerank: self._answers.by_text(text, top, rerank)
        image = _checked(Image, content["id"], "the id of an image is a whole number from 0 on")
        return lambda top, rerank: self._answers.by_id(image, top, rerank)

    async def beginning(self, _: Request) -> Response:
        """Images to begin with."""
        return HTMLResponse(await self._in_thread(self._answers.beginning))

    async def thumbnail(self, request: Request) -> Response:
        """The thumbnail of an image of the index, by its id."""
        data = await self._in_thread(self._answers.thumbnail, request.path_params["image"])
        if data is None:
            return Response(status_code=404)
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=600"})

    async def map(self, _: Request) -> Response:
        """The points of the map."""
        return Response(self._points, media_type="application/json")

    async def script(self, _: Request) -> Response:
        return Response(self._files["page.js"], media_type="text/javascript")

    async def style(self, _: Request) -> Response:
        return Response(self._files["page.css"], media_type="text/css")

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


def _size(request: Request, limit: int) -> int:
    """The size that a body says it has."""
    told = request.headers.get("content-length", "")
    if not told.isdecimal():
        raise Refused(411, "say how long the body is")
    if int(told) > limit:
        raise Refused(413, f"the file has {_mebibytes(int(told))}, more than {_mebibytes(limit)}; give a smaller one")
    return int(told)


async def _body(request: Request, size: int) -> bytes:
    """The body, which is in memory alone and never longer than it said."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > size:
            raise Refused(413, "the body is longer than it said")
    return bytes(body)


def _checked(adapter: TypeAdapter, value: Any, allowed: str) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        raise Refused(400, allowed) from None


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _for_the_page(message: str) -> str:
    """A message of the search for whoever has no command line."""
    message = message.removeprefix("search: ").replace("--id ", "image ")
    return message.replace("search without --rerank", "do not re-rank")
