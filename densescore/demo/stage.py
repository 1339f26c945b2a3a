"""A photograph with a response map over it, in the browser: an opacity slider, and the raw value under the pointer."""

import base64
import math
from typing import Any

import cv2
import numpy as np
from matplotlib import colormaps

from densescore.io.images import Pixels
from densescore.results.scores import DenseScores

_PHOTO_SIDE, _MAP_SIDE = 1000, 400  # longest sides, in pixels, of what goes to the browser

TEMPLATE = """
<div class="stage" hidden>
  <div class="picture"><img class="photo" alt="the photograph"><canvas class="map"></canvas></div>
  <div class="controls">
    <label>map opacity <input class="opacity" type="range" min="0" max="1" step="0.01" value="0.7"></label>
    <output class="reading">point at the picture to read the map</output>
  </div>
  <div class="legend"><span>0</span><canvas class="bar" width="256" height="1"></canvas><span>1</span></div>
</div>
"""

STYLE = """
.picture {position: relative; line-height: 0; touch-action: pan-y; cursor: crosshair;}
.photo {width: 100%; border-radius: 6px;}
.map {position: absolute; inset: 0; width: 100%; height: 100%; border-radius: 6px; pointer-events: none;}
.controls {display: flex; flex-wrap: wrap; gap: 4px 24px; align-items: center; margin-top: 8px;}
.controls label {display: flex; gap: 8px; align-items: center;}
.reading {font-variant-numeric: tabular-nums; min-height: 1.5em;}
.legend {display: flex; gap: 6px; align-items: center; font-size: 0.85em; margin-top: 2px;}
.bar {height: 10px; flex: 1; width: 0; max-width: 320px; border-radius: 3px;}
"""

# Colors are those of `densescore heatmap`: turbo over the square root of the score, from 0 to 1 in every picture.
SCRIPT = """
let raw = null;
const find = (name) => element.querySelector(name);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const draw = () => {
  const value = props.value;
  find('.stage').hidden = !value;
  if (!value) { raw = null; return; }
  raw = new Float32Array(bytes(value.values).buffer);
  const colors = bytes(value.colors);
  find('.photo').src = value.photo;
  const canvas = find('.map');
  canvas.width = value.columns; canvas.height = value.rows;
  const context = canvas.getContext('2d');
  const image = context.createImageData(value.columns, value.rows);
  raw.forEach((score, i) => {
    const level = Math.sqrt(Math.min(Math.max(score, 0), 1));
    const c = Math.round(level * 255) * 3;
    image.data.set([colors[c], colors[c + 1], colors[c + 2], 255 * Math.min(0.2 + level, 1)], 4 * i);
  });
  context.putImageData(image, 0, 0);
  canvas.style.opacity = find('.opacity').value;
  const bar = find('.bar').getContext('2d');
  for (let x = 0; x < 256; x++) {
    const c = Math.round(Math.sqrt(x / 255) * 255) * 3;
    bar.fillStyle = `rgb(${colors[c]}, ${colors[c + 1]}, ${colors[c + 2]})`;
    bar.fillRect(x, 0, 1, 1);
  }
  find('.reading').textContent = `${value.label}: peak ${value.peak.toPrecision(3)}`;
};
const read = (event) => {
  const picture = event.target.closest('.picture');
  if (!picture || !raw) return;
  const box = picture.getBoundingClientRect(), value = props.value;
  const u = (event.clientX - box.left) / box.width, v = (event.clientY - box.top) / box.height;
  if (u < 0 || v < 0 || u >= 1 || v >= 1) return;
  const score = raw[Math.floor(v * value.rows) * value.columns + Math.floor(u * value.columns)];
  const x = Math.floor(u * value.width), y = Math.floor(v * value.height);
  find('.reading').textContent = `${value.label} at (${x}, ${y}): ${score.toPrecision(3)}`;
};
element.addEventListener('pointermove', read);
element.addEventListener('pointerdown', read);
element.addEventListener('input', (event) => {
  if (event.target.matches('.opacity')) find('.map').style.opacity = event.target.value;
});
watch('value', draw);
draw();
"""


def stage_value(pixels: Pixels, scores: DenseScores, label: str) -> dict[str, Any]:
    """What the stage shows: the photograph, and the map's own values at every n-th pixel.

    Args:
        pixels: RGB ``[H, W, 3]``, uint8 or float32 in [0, 1].
        scores: of that image.
        label: a class name.
    """
    values = scores.response_map(label)[0].cpu().numpy()  # [H, W]
    height, width = values.shape
    step = math.ceil(max(height, width) / _MAP_SIDE)
    sampled = values[step // 2 :: step, step // 2 :: step] if min(height, width) > step else values[:1, :1]
    return {
        "label": label,
        "photo": _jpeg(pixels),
        "values": _text(sampled.astype("<f4").tobytes()),
        "rows": sampled.shape[0],
        "columns": sampled.shape[1],
        "height": height,
        "width": width,
        "peak": float(values.max()),
        "colors": _text(colormaps["turbo"](np.arange(256), bytes=True)[:, :3].tobytes()),
    }


def _jpeg(pixels: Pixels) -> str:
    height, width = pixels.shape[:2]
    shrink = min(1.0, _PHOTO_SIDE / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    small = cv2.resize(as_bytes(pixels), size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return "data:image/jpeg;base64," + _text(encoded.tobytes())


def as_bytes(pixels: Pixels) -> Pixels:
    """RGB in uint8, to be looked at."""
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
