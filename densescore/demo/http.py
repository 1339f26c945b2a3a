"""The HTTP call: an encoded image in the body, scores as JSON, or one class's raw map."""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from densescore.demo.guard import error_response
from densescore.demo.limits import BusyError, Clients, Held, TooLargeError, TooManyError, TooSlowError
from densescore.demo.service import Answer, Service
from densescore.errors import DensescoreError
from densescore.results.best_patches import best_patches

T = TypeVar("T")

_BINARY = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"file": _BINARY}, "required": ["file"]}
BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": _BINARY}, "multipart/form-data": {"schema": _FORM}},
    }
}
"""What endpoints that take an image say of it in ``/openapi.json``."""

ClassesQuery = Annotated[
    str, Query(max_length=1000, description="rank these alone: classes or groups, such as `dog,cat`; all by default")
]
_FORM_EXTRA = 50_000  # bytes that a form may have around its file
_STATUS: dict[type[DensescoreError], int] = {
    TooLargeError: 413,
    TooManyError: 429,
    BusyError: 503,
    TooSlowError: 504,
}


def build_api(service: Service, clients: Clients) -> FastAPI:
    """``POST /score``, ``POST /map``, ``GET /models``, ``GET /health``; described at ``/openapi.json``.

    Errors are JSON, ``{"error": "…"}``: 400 not a valid form, 413 too large, 422 not an image or no such model or
    class, 429 too many requests of one client, 503 busy (both with ``Retry-After``), 504 not done in time.
    """
    app = FastAPI(title="densescore", description=__doc__, docs_url=None, redoc_url=None)  # theirs load from elsewhere
    default = next(iter(service.models))
    model_query = Annotated[str, Query(description="one of `GET /models`")]
    _explain_errors(app)

    @app.get("/models")
    async def models() -> Response:
        """Names of the models."""
        return json_response(list(service.models))

    @app.get("/health")
    async def health() -> Response:
        """Whether images can be scored, and how many are in the queue."""
        return json_response(
            {
                "model": default,
                "ready": service.is_ready(default),
                "queue": {"images": service.queued, "most": 1 + service.limits.waiting},
            }
        )

    @app.post("/score", openapi_extra=BODY)
    async def score(
        request: Request,
        model: model_query = default,
        classes: ClassesQuery = "",
        top: Annotated[int, Query(ge=1, le=1000, description="classes to rank")] = 5,
        patches: Annotated[int, Query(ge=0, le=100, description="best patches of the best class")] = 5,
    ) -> Response:
        """Rank the classes of the image in the body; regions and patches of the best one."""

        def describe(answer: Answer) -> dict[str, Any]:
            answer = answer.of(classes)
            row = answer.scores.to_row(top)
            best = best_patches(answer.scores, row["label"], patches)
            return {"model": answer.scores.model, **row, "best_patches": [patch._asdict() for patch in best]}

        return json_response(await answer_to(request, service, clients, model, describe))

    @app.post("/map", openapi_extra=BODY)
    async def response_map(request: Request, label: str, model: model_query = default) -> Response:
        """The raw response map of a class or group, float32 ``[H, W]``, as a NumPy file (.npy)."""

        def encode(answer: Answer) -> bytes:
            file = io.BytesIO()
            np.save(file, answer.scores.response_map(label)[0].cpu().numpy())
            return file.getvalue()

        return await file_response(request, service, clients, model, encode)

    return app


async def answer_to(
    request: Request, service: Service, clients: Clients, model: str, describe: Callable[[Answer], T]
) -> T:
    """Take the image in and have it scored, both within the time that one request has.

    Raises:
        DensescoreError: see `Service.submit`.
        TooManyError: the client has as many images in work as it may.
        ClientDisconnect: the client has left; an image that waited then waits no more.
    """
    with Held(clients.images, request.state.client) as images:
        images.take(1)

        async def work() -> T:
            data = await _image(request, service.limits.upload)
            future = asyncio.wrap_future(service.submit(data, model, describe))
            left = asyncio.ensure_future(_leaving(request))
            either: set[asyncio.Future[Any]] = {future, left}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if not future.done():
                    raise ClientDisconnect
                return future.result()
            finally:
                future.cancel()
                left.cancel()

        try:
            return await asyncio.wait_for(work(), service.limits.seconds)
        except asyncio.TimeoutError as error:  # TimeoutError itself only from Python 3.11 on
            raise service.too_slow() from error


async def file_response(
    request: Request, service: Service, clients: Clients, model: str, encode: Callable[[Answer], bytes]
) -> Response:
    """`answer_to` for answers that are a file."""
    body = await answer_to(request, service, clients, model, encode)
    request.state.held.take(len(body))
    return Response(body, media_type="application/octet-stream")


def json_response(content: Any, status: int = 200) -> Response:
    """JSON in ASCII, so that a label that is no valid text can be sent, too."""
    return Response(json.dumps(content), status, media_type="application/json")


async def _leaving(request: Request) -> None:
    """Return when the client closes the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _image(request: Request, most: int) -> bytes:
    """The body, or the one file of a form, refused as soon as it is known to be too long."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return b"".join([chunk async for chunk in _stream(request, most)])
    parser = MultiPartParser(
        request.headers, _stream(request, most + _FORM_EXTRA), max_files=1, max_fields=10, max_part_size=1000
    )
    parser.spool_max_size = most + _FORM_EXTRA + 1  # never on the disk
    form = await parser.parse()
    try:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise MultiPartException("the form must have one file, the image")
        return await files[0].read()
    finally:
        await form.close()


async def _stream(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise TooLargeError(f"the image has {int(length):,} bytes; at most {most:,} are taken")
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise TooLargeError(f"the image has more than {most:,} bytes")
        request.state.held.take(len(chunk))
        yield chunk


def _explain_errors(app: FastAPI) -> None:
    """All errors in one form, also those of FastAPI and Starlette."""

    def explain(status: int, message: str) -> Response:
        status, headers, body = error_response(status, message)
        return Response(body, status, {name.decode(): value.decode() for name, value in headers})

    @app.exception_handler(DensescoreError)
    async def ours(request: Request, error: DensescoreError) -> Response:
        return explain(_STATUS.get(type(error), 422), str(error))

    @app.exception_handler(HTTPException)
    async def theirs(request: Request, error: HTTPException) -> Response:
        response = explain(error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = [f"{'.'.join(map(str, detail['loc'][1:]))}: {detail['msg']}" for detail in error.errors()]
        return explain(422, "; ".join(found))

    @app.exception_handler(MultiPartException)
    async def bad_form(request: Request, error: MultiPartException) -> Response:
        return explain(400, error.message)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return explain(499, "the client has left")

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        return explain(500, "the server made a mistake; its log says which")
