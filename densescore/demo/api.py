"""HTTP API: an image in the body gives scores as JSON, or heatmaps as NumPy files; and the page with its own calls."""

import asyncio
import gzip
import io
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from densescore.demo.limits import Clients, TooLargeError
from densescore.demo.service import Answer, Service
from densescore.errors import DensescoreError
from densescore.io.images import read_image
from densescore.io.names import to_json
from densescore.results.draw import data_url
from densescore.results.scores import best_patches

T = TypeVar("T")
Describe = Callable[[Answer], T]

_FORM_EXTRA = 50_000  # bytes of a form around its file
_THUMBNAIL_SIDE = 160
_STATIC = Path(__file__).parent / "static"
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_BINARY = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"file": _BINARY}, "required": ["file"]}
_BODY = {  # OpenAPI's description of an image in the body
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": _BINARY}, "multipart/form-data": {"schema": _FORM}},
    }
}
ModelQuery = Annotated[str, Query(description="one of `GET /models`")]
BoxQuery = Annotated[str, Query(max_length=200, description="x0,y0,x1,y1 in shares of the image's width and height")]
ClassesQuery = Annotated[
    str, Query(max_length=1000, description="rank these alone: classes or groups, such as `dog,cat`; all by default")
]


def build_api(service: Service, clients: Clients, examples: Sequence[str] = ()) -> FastAPI:
    """The routes of the API and the page, described at ``/openapi.json``."""
    app = FastAPI(title="densescore", description=__doc__, docs_url=None, redoc_url=None)  # theirs load from elsewhere
    app.router.redirect_slashes = False  # a redirect would name a host
    _add_error_handlers(app)
    app.state.service, app.state.clients = service, clients
    _add_scoring(app, service)
    _add_page(app, service, [Path(path) for path in examples])
    return app


def sample_photographs() -> list[Path]:
    """Photographs to begin with: scikit-image's, if it is installed."""
    package = find_spec("skimage")
    folder = Path(package.origin or "").parent / "data" if package else Path()
    names = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")
    return [folder / name for name in names if (folder / name).is_file()]


def error_response(status: int, message: str) -> Response:
    """The one form of all errors."""
    response = json_response({"error": message}, status)
    if status in (429, 503):
        response.headers["retry-after"] = "5"
    return response


def json_response(content: Any, status: int = 200) -> Response:
    """JSON in ASCII, which also carries labels that are not valid Unicode."""
    return Response(to_json(content), status, media_type="application/json")


def _add_scoring(app: FastAPI, service: Service) -> None:
    default = next(iter(service.models))

    @app.get("/models")
    async def models() -> Response:
        """Names of the models."""
        return json_response(list(service.models))

    @app.get("/health")
    async def health() -> Response:
        """Whether the default model is loaded, and the length of the queue."""
        queue = {"images": service.queued, "most": 1 + service.limits.waiting}
        return json_response({"model": default, "ready": service.is_ready(default), "queue": queue})

    @app.post("/score", openapi_extra=_BODY)
    async def score(
        request: Request,
        model: ModelQuery = default,
        classes: ClassesQuery = "",
        top: Annotated[int, Query(ge=1, le=1000, description="classes to rank")] = 5,
        patches: Annotated[int, Query(ge=0, le=100, description="best patches of the best class")] = 5,
    ) -> Response:
        """Rank the classes of the image in the body; regions and patches of the best one."""

        def describe(answer: Answer) -> dict[str, Any]:
            scores = answer.select(classes).scores
            row = scores.to_row(top)
            best = best_patches(scores, row["label"], patches)
            return {"model": scores.model, **row, "best_patches": [patch._asdict() for patch in best]}

        return json_response(await _score(request, model, describe))

    @app.post("/map", openapi_extra=_BODY)
    async def heatmap(request: Request, label: str, model: ModelQuery = default) -> Response:
        """The heatmap of a class or group, float32 ``[H, W]``, as a NumPy file (.npy)."""

        def encode(answer: Answer) -> bytes:
            file = io.BytesIO()
            np.save(file, answer.scores.heatmap(label)[0].cpu().numpy())
            return file.getvalue()

        return await _score_to_file(request, model, encode)


def _add_page(app: FastAPI, service: Service, examples: Sequence[Path]) -> None:
    """Add the page, and the calls that only the page makes; none of them takes the name of a file."""
    default = next(iter(service.models))
    for route, (name, kind) in _FILES.items():
        file = Response((_STATIC / name).read_bytes(), media_type=kind)
        app.router.routes.append(Route(route, file, methods=["GET"], include_in_schema=False))
    thumbnails = [{"name": path.name, "photo": data_url(read_image(path), _THUMBNAIL_SIDE)} for path in examples]

    @app.get("/examples")
    async def list_examples() -> Response:
        """Names and thumbnails of the example pictures."""
        return json_response(thumbnails)

    @app.get("/examples/{number}")
    async def example(number: int, request: Request) -> Response:
        """An example picture, by its number."""
        if not 0 <= number < len(examples):
            raise HTTPException(404, f"there are {len(examples)} examples")
        body = await asyncio.to_thread(examples[number].read_bytes)
        request.state.hold(len(body))
        return Response(body, media_type="application/octet-stream")

    @app.post("/view", openapi_extra=_BODY)
    async def view(request: Request, model: ModelQuery = default, classes: ClassesQuery = "") -> Response:
        """Everything that the page shows of the image in the body."""
        zipped = "gzip" in request.headers.get("accept-encoding", "")

        # Compress in the worker's thread; starlette's middleware would block the loop
        def encode(answer: Answer) -> bytes:
            text = to_json(answer.select(classes).page()).encode()
            return gzip.compress(text, 1) if zipped else text

        response = await _score_to_file(request, model, encode)
        response.headers["content-type"] = "application/json"
        if zipped:
            response.headers["content-encoding"] = "gzip"
        return response

    @app.post("/maps", openapi_extra=_BODY)
    async def maps(request: Request, model: ModelQuery = default, classes: ClassesQuery = "") -> Response:
        """Heatmaps of the page's classes, as a NumPy archive (.npz): as many as fit in the pixel limit."""

        def encode(answer: Answer) -> bytes:
            return answer.select(classes).maps_file(service.limits.pixels)

        return await _score_to_file(request, model, encode)

    @app.get("/index")
    async def index() -> Response:
        """Number of images in which `/find` searches; 0 without an index."""
        return json_response({"images": 0 if service.index is None else len(service.index.images)})

    @app.post("/find", openapi_extra=_BODY)
    async def find(request: Request, box: BoxQuery = "0,0,1,1") -> Response:
        """Places in the index that look like a box of the image in the body, most similar first."""
        try:
            x0, y0, x1, y1 = map(float, box.split(","))
        except ValueError as error:
            raise DensescoreError(f"box: expected x0,y0,x1,y1, got {box!r}") from error
        corners = (x0, y0, x1, y1)
        return json_response(await _run(request, lambda data: service.find(data, corners, request.state.client)))


async def _score(request: Request, model: str, describe: "Describe[T]") -> T:
    """Receive and score an image."""
    service: Service = request.app.state.service
    return await _run(request, lambda data: service.submit(data, model, describe, request.state.client))


async def _run(request: Request, submit: "Callable[[bytes], Future[T]]") -> T:
    """Receive an image and queue it, within one request's time; if the client leaves, a waiting image is dropped."""
    service: Service = request.app.state.service
    clients: Clients = request.app.state.clients

    async def work() -> T:
        data = await _receive_image(request, service.limits.upload)
        future = asyncio.wrap_future(submit(data))
        left = asyncio.ensure_future(_wait_for_disconnect(request))
        either: set[asyncio.Future[Any]] = {future, left}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                raise ClientDisconnect
            return future.result()
        finally:
            future.cancel()
            left.cancel()

    with clients.images.lease(request.state.client, 1):
        try:
            return await asyncio.wait_for(work(), service.limits.seconds)
        except asyncio.TimeoutError as error:  # TimeoutError itself only from Python 3.11 on
            raise service.too_slow() from error


async def _score_to_file(request: Request, model: str, encode: "Describe[bytes]") -> Response:
    body = await _score(request, model, encode)
    request.state.hold(len(body))
    return Response(body, media_type="application/octet-stream")


async def _wait_for_disconnect(request: Request) -> None:
    """Return when the client closes the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _receive_image(request: Request, max_bytes: int) -> bytes:
    """The body, or the one file of a form."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return b"".join([chunk async for chunk in _stream(request, max_bytes)])
    max_form = max_bytes + _FORM_EXTRA
    parser = MultiPartParser(
        request.headers, _stream(request, max_form), max_files=1, max_fields=10, max_part_size=1000
    )
    parser.spool_max_size = max_form + 1  # never on the disk
    try:
        form = await parser.parse()
    except FormParserError as error:  # which starlette up to 1.0 lets through
        raise MultiPartException(str(error)) from error
    try:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise MultiPartException("the form must have one file, the image")
        return await files[0].read()
    finally:
        await form.close()


async def _stream(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Chunks of the body, refused as soon as it is known to be too long."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise TooLargeError(f"the image has {int(length):,} bytes; at most {max_bytes:,} are taken")
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes:
            raise TooLargeError(f"the image has more than {max_bytes:,} bytes")
        request.state.hold(len(chunk))
        yield chunk


def _add_error_handlers(app: FastAPI) -> None:
    """Answer all errors in one form, also those of FastAPI and Starlette."""
    # 400 invalid form, 413 too large, 422 no image, or no model or class of that name, 504 not done in time; with
    # Retry-After: 429 quota of one client, 503 busy

    def of_http(error: HTTPException) -> Response:
        response = error_response(error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    def of_parameters(error: RequestValidationError) -> Response:
        texts = [f"{'.'.join(map(str, detail['loc'][1:]))}: {detail['msg']}" for detail in error.errors()]
        return error_response(422, "; ".join(texts))

    def add(kind: type[Exception], respond: Callable[[Any], Response]) -> None:
        async def handle(request: Request, error: Exception) -> Response:
            return respond(error)

        app.add_exception_handler(kind, handle)

    add(DensescoreError, lambda error: error_response(getattr(error, "status", 422), str(error)))
    add(HTTPException, of_http)
    add(RequestValidationError, of_parameters)
    add(MultiPartException, lambda error: error_response(400, error.message))
    add(ClientDisconnect, lambda error: error_response(499, "the client has left"))
    add(Exception, lambda error: error_response(500, "internal server error; see the log"))
