"""Arrays of an ``.npz`` archive, read front to back, so that memory does not grow with them."""

from __future__ import annotations

import io
import math
from typing import IO

import numpy as np
from numpy.lib import format as npy


class NpyStream:
    """An array in NumPy's ``.npy`` format that is read block by block along its first axis.

    Args:
        stream: The ``.npy`` file, or an archive's member, at its beginning.

    Raises:
        ValueError: It is no array of plain numbers.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self.shape, fortran, self.dtype = read_header(stream)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"it holds arrays that are no plain numbers, but {self.dtype}")
        self._stream = stream
        if fortran:  # its frames are scattered over all of it
            whole = np.frombuffer(stream.read(), self.dtype).reshape(self.shape, order="F")
            self._stream = io.BytesIO(whole.tobytes())

    def __len__(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    def read(self, count: int) -> np.ndarray:
        """Returns the next ``count`` entries along the first axis.

        Raises:
            ValueError: There are not so many.
        """
        shape = (count, *self.shape[1:])
        content = self._stream.read(math.prod(shape) * self.dtype.itemsize)
        return np.frombuffer(content, self.dtype).reshape(shape)
