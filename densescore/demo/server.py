"""The page and the HTTP call, served together."""

from collections.abc import Sequence

import gradio as gr
import uvicorn
from fastapi import FastAPI

from densescore.demo.http import build_api
from densescore.demo.page import CSS, THEME, build_page
from densescore.demo.service import Service

_CONNECTIONS = 100


def build_app(service: Service, examples: Sequence[str] = (), *, root_path: str | None = None) -> FastAPI:
    """The page at ``/``, the HTTP call beside it.

    Args:
        service: scores the images.
        examples: pictures to pick from on the page.
        root_path: the path under which a proxy shows the app.
    """
    return gr.mount_gradio_app(
        build_api(service),
        build_page(service, examples),
        path="/",
        root_path=root_path,
        allowed_paths=list(examples),
        max_file_size=service.limits.upload,
        footer_links=[],
        ssr_mode=False,
        theme=THEME,
        css=CSS,
    )


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve until interrupted; more connections than a fixed number are turned away with 503."""
    uvicorn.run(app, host=host, port=port, limit_concurrency=_CONNECTIONS, log_level="warning")
