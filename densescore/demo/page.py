"""The page: a photograph in, ranked classes, and for each its map, its best patches and its raw numbers."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from densescore.demo.service import Answer, Service
from densescore.demo.stage import SCRIPT, STYLE, TEMPLATE, as_bytes, stage_value
from densescore.errors import DensescoreError
from densescore.io.images import Pixels
from densescore.results.best_patches import best_patches

_TOP, _PATCHES = 8, 6
_KEPT_SECONDS = 1800  # that an image's scores wait for the next click, and its files on the disk

THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # none to download
CSS = """
.gradio-container {max-width: 1200px !important;}
#classes .wrap {flex-direction: column; align-items: stretch;}
"""


def build_page(service: Service, examples: Sequence[str] = ()) -> gr.Blocks:
    """Lay out the page over a service.

    Args:
        service: scores the images.
        examples: paths of pictures to pick from.
    """
    models = list(service.models)
    folder = tempfile.TemporaryDirectory(prefix="densescore-")  # of maps to download; gone when the process ends
    with gr.Blocks(title="densescore", analytics_enabled=False, delete_cache=(600, _KEPT_SECONDS)) as page:
        gr.Markdown("# densescore\nScores every patch of a photograph at every scale, and shows where each class is.")
        answer = gr.State(None, time_to_live=_KEPT_SECONDS)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.File(label="Photograph", file_types=["image"], elem_id="upload")
                model = gr.Dropdown(models, value=models[0], label="Model", visible=len(models) > 1, elem_id="model")
                classes = gr.Radio([], label="Classes, best first: choose one to see where it is", elem_id="classes")
                maps = gr.DownloadButton("Download these maps (.npz)", visible=False, elem_id="maps")
                if examples:
                    gr.Examples([[path] for path in examples], [upload], label="Or one of these")
            with gr.Column(scale=2, min_width=320):
                message = gr.Markdown(visible=False, elem_id="message")
                stage = gr.HTML(
                    None, html_template=TEMPLATE, css_template=STYLE, js_on_load=SCRIPT, elem_id="stage", padding=False
                )
                patches = gr.Gallery(
                    label="Best patches: score, share",
                    columns=3,
                    visible=False,
                    elem_id="patches",
                    object_fit="contain",
                    buttons=["fullscreen"],
                )

        def score(path: str | None, name: str) -> list[Any]:
            if path is None:
                return [None, gr.Radio(choices=[], value=None), gr.DownloadButton(visible=False), _say("")]
            try:
                found = service.score(_read(path, service.limits.upload), name)
            except DensescoreError as error:
                text = f"**This could not be scored:** {_plain(error, path)}"
                return [None, gr.Radio(choices=[], value=None), gr.DownloadButton(visible=False), _say(text)]
            ranked = found.scores.top(_TOP)
            choices = [(f"{label}  ({value:.3g})", label) for label, value, _ in ranked]
            file = _save_maps(found, [best.label for best in ranked], Path(folder.name))
            return [found, gr.Radio(choices=choices, value=ranked[0].label), _offer(file), _say("")]

        def show(found: Answer | None, label: str | None) -> list[Any]:
            if found is None or label is None:
                return [None, gr.Gallery(value=[], visible=False)]
            return [stage_value(*found, label), gr.Gallery(value=_crops(*found, label), visible=True)]

        outputs = [answer, classes, maps, message]
        for trigger in (upload.change, model.change):
            trigger(score, [upload, model], outputs, api_visibility="private").then(
                show, [answer, classes], [stage, patches], api_visibility="private", show_progress="hidden"
            )
        classes.input(show, [answer, classes], [stage, patches], api_visibility="private", show_progress="hidden")
    page.queue(max_size=4 * (1 + service.limits.waiting))
    return page


def _read(path: str, most: int) -> bytes:
    """An uploaded file; a little more than is taken, where it is too long, so that the service says so."""
    with Path(path).open("rb") as file:
        return file.read(most + 1)


def _plain(error: DensescoreError, path: str) -> str:
    """The error with the uploaded file's name in the place of what the service calls it."""
    text = str(error)
    return f"{Path(path).name}{text[text.index(':') :]}" if text.startswith("image of ") else text


def _say(text: str) -> Any:
    return gr.Markdown(text, visible=bool(text))


def _offer(file: str) -> Any:
    return gr.DownloadButton(value=file, visible=True)


def _save_maps(found: Answer, labels: Sequence[str], folder: Path) -> str:
    """The raw maps ``[len(labels), H, W]`` and their labels in a file, of which Gradio takes a copy; old ones go."""
    for old in folder.iterdir():
        if old.stat().st_mtime < time.time() - _KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    path = Path(tempfile.mkdtemp(dir=folder)) / "maps.npz"
    np.savez_compressed(path, maps=found.scores.response_map(labels).cpu().numpy(), labels=np.array(labels))
    return str(path)


def _crops(pixels: Pixels, scores: Any, label: str) -> list[tuple[Pixels, str]]:
    height, width = pixels.shape[:2]
    crops = []
    for patch in best_patches(scores, label, _PATCHES):
        x0, y0, x1, y1 = np.clip(np.rint(patch.box).astype(int), 0, [width, height, width, height])
        crop = as_bytes(pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)])
        crops.append((crop, f"{patch.score:.2f}, {patch.share:.0%}"))
    return crops
