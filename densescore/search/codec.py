"""Codes of patch features, a byte per component, trained and searched by faiss."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError, MissingPackageError
from densescore.io.files import atomic_write

Vectors = NDArray[np.float32]
Codes = NDArray[np.uint8]

COMPONENTS = 96
"""Components of a feature that are kept, and bytes of its code."""

_WHITENING = 0.25  # components are divided by their variance to this power: 0.5 whitens, 0 leaves them as they are
_LEAST_VARIANCE = 1e-6  # of all variance, added to each component's


class Codec:
    """Leading principal components of features, half whitened, scaled to unit length, rounded to a byte each.

    The product of two vectors is the similarity of their patches, -1 to 1. `index` is an empty index of faiss.
    """

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def train(cls, rows: Vectors) -> "Codec":
        """Measure components and byte ranges on a sample of features ``[N, D]``."""
        faiss = import_faiss()
        kept = min(COMPONENTS, rows.shape[1], len(rows) - 1)
        if kept < 1:
            raise DensescoreError(f"an index is learned from at least 2 patches, got {len(rows)}")
        index = faiss.index_factory(rows.shape[1], f"PCAW{kept},L2norm,SQ8", faiss.METRIC_INNER_PRODUCT)
        components = faiss.downcast_VectorTransform(index.chain.at(0))
        components.eigen_power = -_WHITENING
        components.epsilon = _LEAST_VARIANCE * float(rows.var(0).sum())
        index.train(np.ascontiguousarray(rows, np.float32))
        components.PCAMat.resize(0)  # all D components, which the file would hold beside those kept
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> "Codec":
        """Read a file of `save`."""
        try:
            return cls(import_faiss().deserialize_index(np.frombuffer(path.read_bytes(), np.uint8)))
        except (OSError, RuntimeError) as error:
            raise DensescoreError(f"{path}: cannot be read as the basis of an index: {error}") from error

    def save(self, path: Path) -> None:
        """Write the codec, whole or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_bytes(self._data)

    @cached_property
    def _data(self) -> bytes:
        return import_faiss().serialize_index(self._index).tobytes()

    @property
    def digest(self) -> str:
        """Digest of the codec: codes of another one mean something else."""
        return hashlib.sha256(self._data).hexdigest()

    @property
    def features(self) -> int:
        """D, numbers of a feature."""
        return int(self._index.d)

    @property
    def bytes(self) -> int:
        """Bytes of a code."""
        return int(self._index.sa_code_size())

    def encode(self, features: Vectors) -> Codes:
        """Features ``[M, D]`` → codes ``[M, bytes]``."""
        codes: Codes = self._index.sa_encode(np.ascontiguousarray(features, np.float32))
        return codes

    def vectors(self, features: Vectors) -> Vectors:
        """Features ``[M, D]`` → vectors of unit length ``[M, d]``."""
        rows = np.ascontiguousarray(features, np.float32)
        for step in range(self._index.chain.size()):
            rows = self._index.chain.at(step).apply(rows)
        return rows

    def searchable(self) -> Any:
        """An empty index of faiss that takes codes, and is searched with vectors."""
        return import_faiss().clone_index(self._index.index)


def import_faiss() -> Any:
    """The module faiss, an extra."""
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError("search by example needs faiss: pip install 'densescore[search]'") from error
    return faiss
