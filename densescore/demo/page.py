"""The page: its own files, pictures to pick from, and what it asks the server for. It never names a file of ours."""

import asyncio
import gzip
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from starlette.exceptions import HTTPException

from densescore.demo.http import BODY, ClassesQuery, file_response, json_response
from densescore.demo.limits import Clients
from densescore.demo.service import Answer, Service
from densescore.demo.view import maps_file, view
from densescore.io.images import read_image
from densescore.results.thumbnails import jpeg

_FILES = {"": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_THUMBNAIL_SIDE = 160


def add_page(app: FastAPI, service: Service, clients: Clients, examples: Sequence[str] = ()) -> None:
    """Add the page to an app: ``GET /``, and the calls that only the page uses.

    Args:
        app: of `build_api`.
        service: scores the images.
        clients: quotas.
        examples: paths of pictures to pick from.

    Raises:
        DensescoreError: an example is no image.
    """
    folder = files("densescore.demo") / "static"
    for name, kind in _FILES.items():
        _add_file(app, name, (folder / (name or "page.html")).read_bytes(), kind)
    pictures = [Path(path) for path in examples]
    shown = [{"name": path.name, "photo": jpeg(read_image(path), _THUMBNAIL_SIDE)} for path in pictures]
    default = next(iter(service.models))
    model_query = Annotated[str, Query(description="one of `GET /models`")]

    @app.get("/examples")
    async def list_examples() -> Response:
        """Names and thumbnails of the pictures to pick from."""
        return json_response(shown)

    @app.get("/examples/{number}")
    async def example(number: int, request: Request) -> Response:
        """One of them, by its number."""
        if not 0 <= number < len(pictures):
            raise HTTPException(404, f"there are {len(pictures)} examples")
        body = await asyncio.to_thread(pictures[number].read_bytes)
        request.state.held.take(len(body))
        return Response(body, media_type="application/octet-stream")

    @app.post("/view", openapi_extra=BODY)
    async def look(request: Request, model: model_query = default, classes: ClassesQuery = "") -> Response:
        """What the page shows of the image in the body."""
        zipped = "gzip" in request.headers.get("accept-encoding", "")

        def encode(answer: Answer) -> bytes:
            text = json.dumps(view(answer.of(classes))).encode()
            return gzip.compress(text, 1) if zipped else text

        response = await file_response(request, service, clients, model, encode)
        response.headers["content-type"] = "application/json"
        if zipped:
            response.headers["content-encoding"] = "gzip"
        return response

    @app.post("/maps", openapi_extra=BODY)
    async def maps(request: Request, model: model_query = default, classes: ClassesQuery = "") -> Response:
        """The raw maps of the page's classes, as a NumPy archive (.npz): as many as fit in the most pixels."""
        return await file_response(
            request, service, clients, model, lambda answer: maps_file(answer.of(classes), service.limits.pixels)
        )


def _add_file(app: FastAPI, name: str, content: bytes, kind: str) -> None:
    @app.get(f"/{name}", include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=kind)
