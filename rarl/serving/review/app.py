"""The page for reviews as an ASGI application: static files, and what they ask of `/api`. All state
is in OUT's files; nothing is answered but this machine, and no request is read that is not small.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rarl.data.images import BadImage, decode_image, png_bytes, side_by_side
from rarl.data.parquet import ParquetRows
from rarl.rationales.marks import (
    LONGEST_TEXT,
    Decision,
    Mark,
    MarkFile,
    current_marks,
    digest_of,
    open_rationales,
    to_review,
)
from rarl.schema import Example
from rarl.serving.guard import check_content, is_from_here, read_body, replaying
from rarl.serving.page.files import HEADERS, VENDOR, PageFiles
from rarl.serving.requests import Refusal

STATIC = Path(__file__).parent / "static"
BODY_BYTES = 64 << 10  # several times the longest rationale
BODY_SECONDS = 10.0
KEPT_PICTURES = 4


class MarkRequest(BaseModel):
    """The body of a mark. `shown` is the hash of the rationale that was seen."""

    model_config = ConfigDict(extra="forbid", strict=True)

    decision: Decision
    shown: str
    text: str | None = Field(default=None, max_length=LONGEST_TEXT)


class Review:
    """The rationales of OUT in one reviewer's hands; `place` counts them from 0. For any number of
    threads."""

    def __init__(self, out: Path, reviewer: str) -> None:
        self.file = MarkFile(out, reviewer)
        self.data: ParquetRows = open_rationales(out)
        self.rows: Sequence[int] = to_review(self.data)
        ids = self.data.column("id")
        self.ids = [ids[row] for row in self.rows]
        kept = current_marks({reviewer: self.file.read()}, self.data)[reviewer]
        self.marks: dict[str, Mark] = {name: kept[name] for name in self.ids if name in kept}
        self._lock = threading.Lock()
        self.picture = lru_cache(KEPT_PICTURES)(self._picture)

    def example(self, place: int) -> Example:
        """Raises Refusal where there is none."""
        if not 0 <= place < len(self.rows):
            raise Refusal("no_rationale")
        with self._lock:
            return self.data.read([self.rows[place]])[0]

    def _picture(self, place: int) -> bytes:
        """Returns the images as a PNG file, as models see them, side by side. Raises Refusal."""
        try:
            pictures = [decode_image(image) for image in self.example(place).images]
            if not pictures:
                raise Refusal("invalid_image", "image", reason="it has none")
            return png_bytes(side_by_side(pictures))
        except BadImage as error:
            raise Refusal("invalid_image", "image", reason=str(error)) from None

    def open_place(self, place: int) -> int | None:
        """Returns the next place without a mark, from this one on and then from the first."""
        places = [*range(place, len(self.ids)), *range(place)]
        return next((one for one in places if self.ids[one] not in self.marks), None)

    def progress(self, place: int) -> dict[str, Any]:
        return {
            "total": len(self.ids),
            "marked": len(self.marks),
            "open": self.open_place(place),
        }

    def item(self, place: int) -> dict[str, Any]:
        """Returns what the page shows of a rationale. Raises Refusal."""
        example = self.example(place)
        mark = self.marks.get(example.id)
        names = ("id", "question", "options", "answer", "rationale", "modality", "organ")
        return {
            **{name: getattr(example, name) for name in names},
            "place": place,
            "source": example.rationale_source,
            "status": example.rationale_status,
            "shown": digest_of(example.rationale or ""),
            "mark": mark and {"decision": mark.decision, "text": mark.text, "at": mark.at},
            **self.progress(place),
        }

    def add(self, place: int, asked: MarkRequest) -> dict[str, Any]:
        """Keeps a mark. Raises Refusal."""
        example = self.example(place)
        if asked.shown != digest_of(example.rationale or ""):
            raise Refusal("rationale_changed")
        if asked.decision == "edit" and not (asked.text or "").strip():
            raise Refusal("invalid_value", "text", reason="an edited rationale cannot be empty")
        with self._lock:
            self.marks[example.id] = self.file.add(example, asked.decision, asked.text)
        return self.progress((place + 1) % len(self.ids))


def build_review(out: Path, reviewer: str) -> ASGIApp:
    """Returns the application. Raises UserError where OUT has no rationales."""
    review = Review(out, reviewer)

    def about(request: Request) -> Response:
        return JSONResponse({"reviewer": reviewer, "out": str(out), **review.progress(0)})

    def item(request: Request) -> Response:
        return JSONResponse(review.item(request.path_params["place"]))

    def picture(request: Request) -> Response:
        return Response(review.picture(request.path_params["place"]), media_type="image/png")

    async def mark(request: Request) -> Response:
        try:
            asked = MarkRequest.model_validate_json(await request.body())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the body"
            raise Refusal("invalid_value", where, reason=first["msg"]) from None
        place = request.path_params["place"]
        return JSONResponse(await asyncio.to_thread(review.add, place, asked))

    async def refuse(request: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, Refusal)
        return refusal.response()

    routes = [
        Route("/api/about", about),
        Route("/api/items/{place:int}", item),
        Route("/api/items/{place:int}/mark", mark, methods=["POST"]),
        Route("/api/items/{place:int}/image", picture),
        Mount("/vendor", PageFiles(directory=VENDOR)),
        Mount("/", PageFiles(directory=STATIC, html=True)),
    ]
    return Door(Starlette(routes=routes, exception_handlers={Refusal: refuse}))


class Door:
    """Passes only whole, small requests of this machine's own page on to `app`, and sends HEADERS
    with every reply."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})

        # A patient's picture is not to stay in the browser's cache.
        about_patients = str(scope["path"]).startswith("/api")
        own = HEADERS | ({"cache-control": "no-store"} if about_patients else {})

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(own)
            await send(message)

        try:
            await self.app(scope, await self.admit(scope, receive), send_guarded)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send_guarded)
        except ClientDisconnect:  # before its body was complete
            return

    async def admit(self, scope: Scope, receive: Receive) -> Receive:
        """Returns what gives the request's body. Raises Refusal."""
        headers = Headers(scope=scope)
        if not is_from_here(scope, headers):
            raise Refusal("local_only")
        if scope["method"] in ("GET", "HEAD"):
            return receive
        if scope["method"] != "POST":
            raise Refusal("method_not_allowed", method=scope["method"][:16])
        # What another page in the same browser sends says where it comes from.
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{headers.get('host')}":
            raise Refusal("other_origin")
        check_content(headers, BODY_BYTES)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await read_body(scope, receive, BODY_BYTES)
        except TimeoutError:
            raise Refusal("body_timeout", seconds=BODY_SECONDS) from None
        return replaying(body, receive)
