"""Published checkpoints of PyTorch: read without running what they hold, and loaded in full or not at all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atomcsi.errors import InputError

#: All that a checkpoint may hold besides tensors and plain Python data: numpy scalars, under their old name too.
_SCALAR = np._core.multiarray.scalar
SAFE_GLOBALS = [
    np.dtype,
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")),
]


class _Inert:
    """Stands for any object of a class that only a checkpoint's authors have: takes everything, keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_checkpoint(path: Path, *, skip_objects: bool = False) -> Mapping[str, Any]:
    """Reads a checkpoint without running what it holds.

    Args:
        path: The file.
        skip_objects: Whether it may hold objects of classes that are not installed here, such as a training config,
            which are left out: an inert object stands where each was. Otherwise they are refused. With this, tensors
            are mapped: those that nobody uses, such as an optimizer's, are never read.

    Returns:
        What was saved, with the weights as ``state_dict``.

    Raises:
        InputError: The file does not exist, is no checkpoint, holds code, or holds no ``state_dict``.
    """
    if not path.is_file():
        raise InputError(path, "no such checkpoint", mend="download it, or correct the path in the config")
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if skip_objects else []
            with torch.serialization.safe_globals([(_Inert, name) for name in foreign]):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=skip_objects)
    except Exception as error:  # other files make torch.load fail in a dozen ways
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            problem = f"holds '{refused[1]}', which is neither weights nor plain data and was not run"
            raise InputError(path, problem, mend="use a checkpoint from a source that you trust") from None
        if _Inert.__name__ in str(error):  # torch fills no dictionaries or lists but Python's own
            problem = "holds dictionaries or lists of foreign classes, which cannot be skipped"
            mend = "where its authors' code is installed, load it and save its state_dict and optimizer_states only"
            raise InputError(path, problem, mend=mend) from None
        raise InputError(path, "is not a checkpoint of PyTorch", mend="download it again") from None
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise InputError(path, "holds no 'state_dict'")
    return content


def load_weights(path: Path, model: nn.Module, weights: Mapping[str, Any], name: str) -> None:
    """Loads weights into a model, all of them.

    Args:
        path: The file that they are from.
        model: Takes the weights.
        weights: What the file holds under the names of the model's state dict.
        name: The model's name in errors.

    Raises:
        InputError: Tensors are missing, left over, of another shape or not finite.
    """
    expected = model.state_dict()
    both = expected.keys() & weights.keys()
    faults = {
        "missing": expected.keys() - both,
        "unexpected": weights.keys() - both,
        "of another shape": {n for n in both if not _same_shape(expected[n], weights[n])},
    }
    problems = [f"{len(n)} tensors {fault}, such as '{min(n)}'" for fault, n in faults.items() if n]
    if problems:
        raise InputError(path, f"does not fit {name}: {'; '.join(problems)}")
    if not all(torch.isfinite(tensor).all() for tensor in weights.values()):
        raise InputError(path, "holds weights that are not finite", mend="download it again")
    model.load_state_dict(weights)


def _same_shape(expected: Tensor, found: object) -> bool:
    return isinstance(found, Tensor) and found.shape == expected.shape
