"""The HTTP call: an encoded image in the body, scores as JSON, or one class's raw map."""

import asyncio
import io
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse

from densescore.demo.service import Answer, BusyError, Service, TooLargeError, TooSlowError
from densescore.errors import DensescoreError
from densescore.results.best_patches import best_patches

_BODY = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_STATUS: dict[type[DensescoreError], int] = {TooLargeError: 413, BusyError: 503, TooSlowError: 504}


def build_api(service: Service) -> FastAPI:
    """``POST /score``, ``POST /map``, ``GET /models``; described by the app itself at ``/openapi.json``.

    Errors are JSON, ``{"error": "…"}``: 413 too large, 422 not an image or no such model or class, 503 the queue is
    full (with ``Retry-After``), 504 not done in time.
    """
    app = FastAPI(title="densescore", description=__doc__)
    default = next(iter(service.models))
    model_query = Annotated[str, Query(description="one of `GET /models`")]

    @app.exception_handler(DensescoreError)
    async def explain(request: Request, error: DensescoreError) -> JSONResponse:
        status = _STATUS.get(type(error), 422)
        headers = {"Retry-After": "5"} if status == 503 else None
        return JSONResponse({"error": str(error)}, status, headers)

    @app.get("/models")
    async def models() -> list[str]:
        """Names of the models."""
        return list(service.models)

    @app.post("/score", openapi_extra={"requestBody": _BODY})
    async def score(
        request: Request,
        model: model_query = default,
        top: Annotated[int, Query(ge=1, le=1000, description="classes to rank")] = 5,
        patches: Annotated[int, Query(ge=0, le=100, description="best patches of the best class")] = 5,
    ) -> JSONResponse:
        """Rank the classes of the image in the body; regions and patches of the best one."""
        answer = await _within(service, request, model)

        def describe() -> dict[str, Any]:
            row = answer.scores.to_row(top)
            best = best_patches(answer.scores, row["label"], patches)
            return {"model": answer.scores.model, **row, "best_patches": [patch._asdict() for patch in best]}

        return JSONResponse(await asyncio.to_thread(describe))

    @app.post("/map", openapi_extra={"requestBody": _BODY})
    async def response_map(request: Request, label: str, model: model_query = default) -> Response:
        """The class's raw response map of the image in the body, as a float32 ``[H, W]`` NumPy file (.npy)."""
        answer = await _within(service, request, model)

        def encode() -> bytes:
            file = io.BytesIO()
            np.save(file, answer.scores.response_map(label)[0].cpu().numpy())
            return file.getvalue()

        return Response(await asyncio.to_thread(encode), media_type="application/octet-stream")

    return app


async def _within(service: Service, request: Request, model: str) -> Answer:
    """Take the body in and have it scored, both within the time that one request has."""

    async def work() -> Answer:
        return await asyncio.wrap_future(service.submit(await _body(request, service.limits.upload), model))

    return await _timed(work, service)


async def _timed(work: Callable[[], Coroutine[Any, Any, Answer]], service: Service) -> Answer:
    try:
        return await asyncio.wait_for(work(), service.limits.seconds)
    except asyncio.TimeoutError as error:  # TimeoutError itself only from Python 3.11 on
        raise service.too_slow() from error


async def _body(request: Request, most: int) -> bytes:
    """The body, refused as soon as it is known to be too long."""
    length = request.headers.get("content-length", "")
    body = bytearray()
    if length.isdigit() and int(length) > most:
        raise TooLargeError(f"the image has {int(length):,} bytes; at most {most:,} are taken")
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise TooLargeError(f"the image has more than {most:,} bytes")
    return bytes(body)
