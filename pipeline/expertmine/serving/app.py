"""The paths of the service. Parse, have it written, answer: what is said is in `completions` and `catalogue`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from expertmine.errors import UserError
from expertmine.index.experts import Experts
from expertmine.serving.batching import Batcher, Busy, Ended, Job, News, Writer
from expertmine.serving.catalogue import Catalogue
from expertmine.serving.completions import Limits, of_request, parse, served_name, unknown_concept
from expertmine.serving.refusals import Refusal, of_field
from expertmine.serving.responses import CompletionResponse
from expertmine.steering.generation import GenerationRequest

BODY_SECONDS = 30
"""A client may take that long to send its body."""
RETRY_AFTER = {"retry-after": "2"}
INTERNAL = Refusal(500, "something went wrong here; the server's log says what", "internal_error")


@dataclass(frozen=True, slots=True)
class Service:
    """What the paths need."""

    writer: Writer
    batcher: Batcher
    experts: Experts
    limits: Limits


def new_app(service: Service) -> FastAPI:
    """The application, without its guard."""
    # Its pages of documentation would tell strangers what is here, and load scripts from elsewhere.
    app = FastAPI(title="expertmine", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    catalogue = Catalogue(service.experts)
    name = served_name(service.experts)
    _answer_trouble(app)

    @app.get("/health")
    def health() -> Response:
        well = service.batcher.alive
        return JSONResponse({"ok": well, "model_loaded": True}, 200 if well else 503)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "expertmine"}]}

    @app.get("/v1/concepts")
    def concepts(
        search: str = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> dict[str, Any]:
        found = catalogue.search(search)
        return {"object": "list", "total": len(found), "offset": offset, "data": found[offset : offset + limit]}

    @app.get("/v1/concepts/{concept:path}")
    def concept_(concept: str) -> Response:
        if concept not in service.experts:
            raise unknown_concept(concept, service.experts)
        return JSONResponse(catalogue.concept(concept))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked = parse(await _read(request, service.limits.body), service.experts, service.limits)
        tokens = await asyncio.to_thread(_check, service.writer, asked.requests)
        answer = CompletionResponse(asked, name, tokens)
        news: asyncio.Queue[News] = asyncio.Queue()
        job = Job(asked.requests, _teller(news))
        try:
            service.batcher.submit(job)
        except Busy as busy:
            raise Refusal(503, str(busy), "busy", headers=RETRY_AFTER) from None
        handed_over = False
        watch = asyncio.create_task(_drop_when_gone(request, service.batcher, job, news))
        try:
            # What goes wrong before the first piece still has a status of its own.
            first = await _next(news)
            if asked.stream:
                handed_over = True
                return _Events(_events(first, news, answer), lambda: service.batcher.drop(job))
            piece: News = first
            while not isinstance(piece, Ended):
                answer.add(piece)
                piece = await _next(news)
            return JSONResponse(answer.whole())
        finally:
            watch.cancel()
            if not handed_over:
                service.batcher.drop(job)

    return app


def _answer_trouble(app: FastAPI) -> None:
    """Every error in one shape."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def wrong_query(request: Request, error: RequestValidationError) -> Response:
        return of_field(error.errors()[0], ()).response()

    @app.exception_handler(HTTPException)
    async def wrong_path(request: Request, error: HTTPException) -> Response:
        found = f"{request.method} {request.url.path}"
        if error.status_code == 405:
            return Refusal(
                405, f"{found}: not with this method", "method_not_allowed", headers=error.headers
            ).response()
        return Refusal(error.status_code, f"{found}: there is nothing here", "not_found").response()

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # to nobody

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return INTERNAL.response()


async def _read(request: Request, most: int) -> bytes:
    """The body, of JSON, as long as it stays within `most` bytes; what a client says of its length is not relied on."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, f"content-type is {kind!r}: expected application/json", "unsupported_media_type")
    too_large = Refusal(413, f"the body is too large: expected {most} bytes at most", "body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise Refusal(408, f"the body did not come within {BODY_SECONDS} seconds", "timeout") from None
    return bytes(body)


def _check(writer: Writer, requests: Sequence[GenerationRequest]) -> int:
    """Tokens of all prompts."""
    try:
        return sum(writer.check(request) for request in requests)
    except UserError as error:
        raise of_request(error) from None
    except ConnectionError:
        raise _refusal(Ended("lost", "the process that writes was lost; another takes its place: try again")) from None


def _teller(news: asyncio.Queue[News]) -> Callable[[News], None]:
    """A way to put something into this loop's queue from another thread."""
    loop = asyncio.get_running_loop()

    def tell(item: News) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody listens
            loop.call_soon_threadsafe(news.put_nowait, item)

    return tell


async def _drop_when_gone(request: Request, batcher: Batcher, job: Job, news: asyncio.Queue[News]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    batcher.drop(job)
    news.put_nowait(Ended("stopping", "the client has gone"))


async def _next(news: asyncio.Queue[News]) -> News:
    """The next piece, or that all is done.

    Raises:
        Refusal: it ended in another way.
    """
    item = await news.get()
    if isinstance(item, Ended) and item.how != "done":
        raise _refusal(item)
    return item


def _refusal(ended: Ended) -> Refusal:
    match ended.how:
        case "refused":
            return of_request(UserError(ended.message))
        case "lost" | "stopping":
            return Refusal(503, ended.message, ended.how, headers=RETRY_AFTER)
        case _:
            return Refusal(500, ended.message, "internal_error")


async def _events(first: News, news: asyncio.Queue[News], answer: CompletionResponse) -> AsyncIterator[str]:
    """Server-sent events. One that ends with an error has no ``[DONE]``."""
    try:
        item = first
        while not isinstance(item, Ended):
            yield _event(answer.chunk(item))
            item = await _next(news)
        yield "data: [DONE]\n\n"
    except Refusal as refusal:
        yield _event(refusal.document())


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


class _Events(StreamingResponse):
    """A stream that says when it is over, however that came about."""

    def __init__(self, events: AsyncIterator[str], over: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self.over = over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.over()
