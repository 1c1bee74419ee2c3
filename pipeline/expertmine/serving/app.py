"""The HTTP routes: parse a request, have it generated, respond. Bodies are built in `completions` and `catalogue`."""

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
from expertmine.serving.batching import LOST, Batcher, Busy, Ended, Job, Update, Writer
from expertmine.serving.catalogue import Catalogue
from expertmine.serving.completions import Limits, of_request, parse, served_name, unknown_concept
from expertmine.serving.refusals import Refusal, of_field
from expertmine.serving.responses import CompletionResponse
from expertmine.steering.generation import GenerationRequest

BODY_SECONDS = 30
"""Seconds in which a client must send its body."""
RETRY_AFTER = {"retry-after": "2"}
INTERNAL = Refusal(500, "internal server error; see the server's log", "internal_error")


@dataclass(frozen=True, slots=True)
class Service:
    """The objects that the routes use."""

    writer: Writer
    batcher: Batcher
    experts: Experts
    limits: Limits


def new_app(service: Service) -> FastAPI:
    """The application, without the guard."""
    # FastAPI's documentation pages need no token and load scripts from other hosts, so they are off.
    app = FastAPI(title="expertmine", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    catalogue = Catalogue(service.experts)
    name = served_name(service.experts)
    _add_error_handlers(app)

    @app.get("/health")
    def health() -> Response:
        alive = service.batcher.alive
        return JSONResponse({"ok": alive, "model_loaded": True}, 200 if alive else 503)

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
        parsed = parse(await _read(request, service.limits.body), service.experts, service.limits)
        tokens = await asyncio.to_thread(_check, service.writer, parsed.requests)
        response = CompletionResponse(parsed, name, tokens)
        updates: asyncio.Queue[Update] = asyncio.Queue()
        job = Job(parsed.requests, _notifier(updates))
        try:
            service.batcher.submit(job)
        except Busy as busy:
            raise Refusal(503, str(busy), "busy", headers=RETRY_AFTER) from None
        handed_over = False
        watch = asyncio.create_task(_drop_on_disconnect(request, service.batcher, job, updates))
        try:
            # An error before the first piece can still set the status.
            first = await _next(updates)
            if parsed.stream:
                handed_over = True
                return _Events(_events(first, updates, response), lambda: service.batcher.drop(job))
            update: Update = first
            while not isinstance(update, Ended):
                response.add(update)
                update = await _next(updates)
            return JSONResponse(response.whole())
        finally:
            watch.cancel()
            if not handed_over:
                service.batcher.drop(job)

    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Respond to every error with the same document."""

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
            return Refusal(405, f"{found}: method not allowed", "method_not_allowed", headers=error.headers).response()
        return Refusal(error.status_code, f"{found}: not found", "not_found").response()

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody receives it

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return INTERNAL.response()


async def _read(request: Request, max_bytes: int) -> bytes:
    """Read a JSON body of at most `max_bytes`; does not trust the content-length header.

    Raises:
        Refusal: wrong content type, too many bytes, or too slow.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, f"content-type is {kind!r}: expected application/json", "unsupported_media_type")
    too_large = Refusal(413, f"the body is too large: expected at most {max_bytes} bytes", "body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {BODY_SECONDS} s", "timeout") from None
    return bytes(body)


def _check(writer: Writer, requests: Sequence[GenerationRequest]) -> int:
    """The number of tokens of all prompts.

    Raises:
        Refusal: a request is invalid, or the generating process was lost.
    """
    try:
        return sum(writer.check(request) for request in requests)
    except UserError as error:
        raise of_request(error) from None
    except ConnectionError:
        raise _refusal(Ended("lost", LOST)) from None


def _notifier(updates: asyncio.Queue[Update]) -> Callable[[Update], None]:
    """A function that puts an update into this loop's queue from another thread."""
    loop = asyncio.get_running_loop()

    def notify(update: Update) -> None:
        with suppress(RuntimeError):  # the loop is closed and nobody is waiting
            loop.call_soon_threadsafe(updates.put_nowait, update)

    return notify


async def _drop_on_disconnect(request: Request, batcher: Batcher, job: Job, updates: asyncio.Queue[Update]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    batcher.drop(job)
    updates.put_nowait(Ended("stopping", "the client disconnected"))


async def _next(updates: asyncio.Queue[Update]) -> Update:
    """The next piece, or the end of a finished job.

    Raises:
        Refusal: the job ended without finishing.
    """
    update = await updates.get()
    if isinstance(update, Ended) and update.outcome != "done":
        raise _refusal(update)
    return update


def _refusal(ended: Ended) -> Refusal:
    match ended.outcome:
        case "refused":
            return of_request(UserError(ended.message))
        case "lost" | "stopping":
            return Refusal(503, ended.message, ended.outcome, headers=RETRY_AFTER)
        case _:
            return Refusal(500, ended.message, "internal_error")


async def _events(first: Update, updates: asyncio.Queue[Update], response: CompletionResponse) -> AsyncIterator[str]:
    """Server-sent events. A stream that ends with an error has no ``[DONE]``."""
    try:
        update = first
        while not isinstance(update, Ended):
            yield _event(response.chunk(update))
            update = await _next(updates)
        yield "data: [DONE]\n\n"
    except Refusal as refusal:
        yield _event(refusal.document())


def _event(document: dict[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"


class _Events(StreamingResponse):
    """A stream that calls a function when it ends, for whatever reason."""

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self.on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.on_end()
