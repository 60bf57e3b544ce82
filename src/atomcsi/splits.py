"""Which structures are trained, validated and tested on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold

from atomcsi.catalogue import FoldSplit
from atomcsi.errors import ConfigError


def fold_masks(split: FoldSplit, groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Distributes structures over train, val and test by folds; see :class:`~atomcsi.catalogue.FoldSplit`.

    Args:
        split: Which fold, and the seeds.
        groups: Group of every structure, in the reader's order: what is stratified by.

    Returns:
        For each split a boolean mask over the structures; the masks are disjoint and cover everything.

    Raises:
        ConfigError: There are fewer structures than folds.
    """
    folds = (StratifiedKFold if split.stratified else KFold)(split.folds, shuffle=True, random_state=split.seed)
    try:
        rest, test = list(folds.split(np.zeros(len(groups)), groups))[split.fold]
    except ValueError as error:
        raise ConfigError(f"split: {error}") from error
    order = np.random.RandomState(split.val_seed).permutation(len(rest))
    first_val = int((1 - split.val) * len(rest))
    members = {"train": rest[order[:first_val]], "val": rest[order[first_val:]], "test": test}
    masks = {part: np.zeros(len(groups), dtype=bool) for part in members}
    for part, indices in members.items():
        masks[part][indices] = True
    return masks
