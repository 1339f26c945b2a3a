"""Faster forms that passed their check, in the user's cache folder: the next process neither makes nor checks them."""

import hashlib
import logging
import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from densescore.errors import DensescoreError
from densescore.io.files import atomic_write
from densescore.io.names import to_json

_log = logging.getLogger("densescore")

_VERSION = 1  # raise it when a form changes for the same network
_DIGEST = 32  # bytes before the data
_MAX_FILES = 32  # 14 MB for lite0; the oldest are deleted
_PACKAGES = ("densescore", "torch", "torchvision", "timm", "openvino")


def cache_folder() -> Path:
    """The user's folder of densescore's caches."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "densescore"


class FormCache:
    """Files of a network's forms. A `network` is JSON that its layers and weights follow from; None: no files.

    A cache that cannot be read or written is an empty one.
    """

    def __init__(self, network: Any) -> None:
        self._network = network

    def read(self, form: str) -> bytes | None:
        """The data of a form that passed its check, or None."""
        if self._network is not None:
            with suppress(OSError):
                content = self._file(form).read_bytes()
                digest, data = content[:_DIGEST], content[_DIGEST:]
                if hashlib.sha256(data).digest() == digest:
                    _log.debug("%s of %s: from the cache", form, self._network)
                    return data
        return None

    def write(self, form: str, data: bytes) -> None:
        """Keep a form that passed its check."""
        if self._network is None:
            return
        with suppress(OSError, DensescoreError):  # a full disk, no permission
            file = self._file(form)
            with atomic_write(file, overwrite=True) as temporary:
                temporary.write_bytes(hashlib.sha256(data).digest() + data)
            files = sorted(file.parent.glob("*.form"), key=lambda file: file.stat().st_mtime)
            for old in files[:-_MAX_FILES]:
                old.unlink()

    def _file(self, form: str) -> Path:
        processor = (torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
        key = (_VERSION, form, self._network, processor, [_version_of(package) for package in _PACKAGES])
        return cache_folder() / "forms" / f"{hashlib.sha256(to_json(key).encode()).hexdigest()}.form"


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
