"""Image levels in torch: what a CPU runs, and the documentation of the kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from densescore_kernels.tiles import Tiles


def image_levels(
    pixels: torch.Tensor,  # [ΣHW, 3]
    levels: Tiles,
    factors: Sequence[float],
    offsets: Sequence[float],
    out: torch.Tensor,  # [positions, 3]
) -> None:
    """Write each level at its place."""
    factor, offset = (pixels.new_tensor(numbers, dtype=torch.float32) for numbers in (factors, offsets))
    for source, H, W, h, w, padded_h, padded_w, target, row, _ in levels.table.T.tolist():
        image = pixels[source : source + H * W].view(H, W, 3).float()
        bytes_grow = pixels.dtype == torch.uint8 and h >= H and w >= W
        image = _resize(image, w, 1, bytes_grow)
        image = _resize((image * 128).floor() / 128 if bytes_grow else image, h, 0, bytes_grow)  # [h, w, 3]
        if pixels.dtype == torch.uint8:
            image = (image + 0.5).floor()
        image = image[_reflected(h, padded_h, pixels.device)][:, _reflected(w, padded_w, pixels.device)]
        image = image * factor + offset
        out.as_strided((padded_h, padded_w, 3), (3 * row, 3, 1), out.storage_offset() + 3 * target).copy_(image)


def _resize(image: torch.Tensor, size: int, dim: int, bytes_grow: bool) -> torch.Tensor:
    """Resize along one axis, in float32; bytes that grow as OpenCV does, with 11 bits of a weight and 2 of a row."""
    length = image.shape[dim]
    if size == length:
        return image
    step = length / size
    new = torch.arange(size, dtype=torch.float64, device=image.device)  # [size]
    if size < length:
        start = new * step
        first, taps = start.floor(), int(step) + 2
    else:
        center = (new + 0.5) * step - 0.5
        first, taps = center.floor(), 2
    total = torch.zeros_like(image.index_select(dim, torch.zeros(size, dtype=torch.int64, device=image.device)))
    for tap in range(taps):
        at = first + tap
        if size < length:
            weight = (torch.minimum(start + step, at + 1) - torch.maximum(start, at)).clamp(min=0) / step
        else:
            weight = 1 - (center - at).abs()
        if bytes_grow:
            weight = (weight * 2048).round() / 2048
        part = image.index_select(dim, at.clamp(0, length - 1).long()) * weight.float().view(-1, *[1] * (2 - dim))
        total += (part * 4).floor() / 4 if bytes_grow and dim == 0 else part
    return total


def _reflected(size: int, padded: int, device: torch.device) -> torch.Tensor:
    """Positions mirrored about the border pixels, which are not repeated: ``[padded]``."""
    period = max(2 * (size - 1), 1)
    position = torch.arange(padded, device=device) % period
    return torch.minimum(position, period - position)
