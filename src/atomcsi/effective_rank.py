"""Effective rank of atom- against structure-level features: why CSI compares atoms (paper, section 3, experiment 7).

The effective rank (Roy and Vetterli 2007) is the exponential of the entropy of the normalised eigenvalues of the
covariance of z-scored features: the number of directions in which the features really vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import entropy

from atomcsi.embeddings import Embedding
from atomcsi.moments import Moments
from atomcsi.sampling import Aggregation

#: Aggregations of atoms to structures, beside ``flat``, and bootstrap resamples of each size.
POOLED: tuple[Aggregation, ...] = ("mean", "sum", "max")
RESAMPLES = 5


def effective_rank(moments: Moments) -> float:
    """Returns the effective rank of the features' correlation matrix, between 1 and d.

    Features that do not vary are left out; if none does, the rank is 0.
    """
    covariance = moments.covariance
    deviations = np.sqrt(np.diag(covariance))
    varying = deviations > 0
    if not varying.any():
        return 0.0
    scale = deviations[varying]
    correlations = covariance[np.ix_(varying, varying)] / np.outer(scale, scale)
    return float(np.exp(entropy(np.linalg.eigvalsh(correlations).clip(0))))


def effective_ranks(
    path: Path,
    *,
    sizes: Sequence[int] = (100, 1000, 5000, 10000),
    aggregations: Sequence[Aggregation] = ("flat", *POOLED),
    repeats: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns the effective rank by aggregation and number of structures, from bootstrap resamples of structures.

    Args:
        path: Embedding file.
        sizes: Numbers of structures; those beyond what the file holds are left out, unless that leaves nothing, and
            then it is the file's own number.
        aggregations: What a row of features is; ``flat`` is atom level.
        repeats: Bootstrap resamples of each size.
        seed: Seed of the resamples; the same structures are drawn for every aggregation.

    Returns:
        A row per aggregation, size and repeat: ``dataset``, ``extractor``, ``aggregation``, ``structures``,
        ``repeat``, ``effective_rank``, and ``dim``, the number of features.
    """
    rows = []
    for aggregation in aggregations:
        embedding = Embedding(path, aggregation)
        shares = embedding.multiplicity / embedding.multiplicity.sum()
        names = (embedding.provenance["dataset"], embedding.provenance["extractor"], aggregation)
        for size in [size for size in sizes if size <= embedding.structures] or [embedding.structures]:
            generator = np.random.default_rng([seed, size])
            for repeat in range(repeats):
                drawn = generator.choice(embedding.structures, size, p=shares)
                moments = embedding.resampled(np.bincount(drawn, minlength=embedding.structures))
                rows.append((*names, size, repeat, effective_rank(moments), embedding.dim))
    columns = ["dataset", "extractor", "aggregation", "structures", "repeat", "effective_rank", "dim"]
    return pd.DataFrame(rows, columns=columns)
