"""CSI of mixes of upstream datasets, in closed form from their moments, and the mix of least CSI.

A mix takes the share w_k of its atoms from dataset k. Its mean is sum_k w_k m_k and its covariance
sum_k w_k (S_k + (m_k - m)(m_k - m)^T): nothing has to be embedded again. As a function of the weights, CSI to a fixed
dataset is convex, so that its minimum over the simplex is found by descent from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from atomcsi.distances.frechet import frechet, transport
from atomcsi.embeddings import Embedding
from atomcsi.files import read_json, versions, write_json
from atomcsi.measure import require_alike
from atomcsi.moments import Moments
from atomcsi.sampling import apportion

SCHEMA = "atomcsi.mixtures/1"
#: Below this share a dataset is left out of the best mix: its effect is less than what the descent resolves.
_LEAST_SHARE = 1e-3
#: Structures that are added, per structure that is there.
_RATIOS = (0.1, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Upstream:
    """An upstream dataset as a part of mixes.

    Attributes:
        name: Its id.
        moments: Moments of its atoms' features.
        atoms: Mean number of atoms per structure.
    """

    name: str
    moments: Moments
    atoms: float


@dataclass(frozen=True)
class Mix:
    """A mix of upstream datasets.

    Attributes:
        weights: Share of the atoms by dataset; they add up to 1.
        csi: CSI of the mix to the downstream dataset.
    """

    weights: Mapping[str, float]
    csi: float


def mixed(parts: Sequence[Moments], weights: Sequence[float]) -> Moments:
    """Moments of a mix with these shares of atoms, as if drawn from endless supplies of every part.

    Args:
        parts: Moments of the datasets.
        weights: Share of the atoms of each; they add up to 1.
    """
    mean = sum(weight * part.mean for weight, part in zip(weights, parts, strict=True))
    covariance = np.zeros((len(mean), len(mean)))
    for weight, part in zip(weights, parts, strict=True):
        if weight:
            shift = part.mean - mean
            covariance += weight * part.covariance
            covariance += np.outer(weight * shift, shift)
    count = sum(part.count for weight, part in zip(weights, parts, strict=True) if weight)
    return Moments(count, mean, covariance * max(count - 1, 1))


def mix_of_structures(
    upstreams: Sequence[Upstream], structures: Sequence[float], downstream: Moments, *, device: str = "cpu"
) -> Mix:
    """CSI of a mix that has these numbers of structures of each dataset."""
    atoms = np.array([each.atoms for each in upstreams]) * structures
    return _mix(upstreams, atoms / atoms.sum(), downstream, device)


def best_mix(upstreams: Sequence[Upstream], downstream: Moments, *, device: str = "cpu") -> Mix:
    """The mix of least CSI to a downstream dataset, over all shares of atoms.

    Args:
        upstreams: The datasets.
        downstream: Moments of the downstream dataset.
        device: Where Fréchet distances are computed.

    Returns:
        The mix. Shares below 0.1 % are left out.
    """
    parts = [each.moments for each in upstreams]

    alone = [frechet(part, downstream, device=device).value for part in parts]
    scale = min(alone) or 1.0

    def csi_and_gradient(weights: np.ndarray) -> tuple[float, np.ndarray]:
        mix = mixed(parts, weights)
        # By the chain rule through mean and covariance; what moves all weights alike drops out on the simplex.
        slope = np.eye(mix.dim) - transport(mix, downstream, device=device)
        pull = 2 * (mix.mean - downstream.mean) - 2 * (slope @ mix.mean)
        gradient = [pull @ p.mean + (slope * p.covariance).sum() + p.mean @ slope @ p.mean for p in parts]
        return frechet(mix, downstream, device=device).value / scale, np.array(gradient) / scale

    found = minimize(
        csi_and_gradient,
        np.full(len(parts), 1 / len(parts)),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * len(parts),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-7, "maxiter": 100},
    )
    weights = np.where(found.x < _LEAST_SHARE, 0.0, found.x)
    best = _mix(upstreams, weights / weights.sum(), downstream, device)
    # A single dataset is a mix too, and descent only comes close to a corner.
    single = int(np.argmin(alone))
    if alone[single] <= best.csi:
        return Mix({each.name: float(i == single) for i, each in enumerate(upstreams)}, alone[single])
    return best


def _mix(upstreams: Sequence[Upstream], weights: np.ndarray, downstream: Moments, device: str) -> Mix:
    csi = frechet(mixed([each.moments for each in upstreams], weights), downstream, device=device).value
    return Mix({each.name: float(weight) for each, weight in zip(upstreams, weights, strict=True)}, csi)


def budget(upstreams: Sequence[Upstream], mix: Mix, structures: int) -> dict[str, int]:
    """How many structures of each dataset make the mix, of ``structures`` in all.

    The mix's weights are shares of atoms: a dataset of large structures needs fewer of them.
    """
    shares = [mix.weights[each.name] / each.atoms for each in upstreams]
    return dict(zip((each.name for each in upstreams), apportion(shares, structures).tolist(), strict=True))


def adding(base: Upstream, added: Upstream, downstream: Moments, *, device: str = "cpu") -> dict[float, Mix]:
    """The predicted effect of adding one dataset to another (paper: 1M of OC22 to 2M of ANI-1x is the ratio 0.5).

    Args:
        base: The dataset that is added to.
        added: The dataset that is added.
        downstream: Moments of the downstream dataset.
        device: Where Fréchet distances are computed.

    Returns:
        Structures of ``added`` per structure of ``base`` -> the mix.
    """
    return {ratio: mix_of_structures((base, added), (1.0, ratio), downstream, device=device) for ratio in _RATIOS}


def measure_mixes(
    upstreams: Sequence[Embedding], downstream: Embedding, *, structures: int, device: str = "cpu"
) -> dict[str, Any]:
    """Compares single upstream datasets with mixes of them.

    Args:
        upstreams: Embeddings of the upstream datasets.
        downstream: Embedding of the downstream dataset.
        structures: Size of the pretraining set that is to be split among the upstreams.
        device: Where Fréchet distances are computed.

    Returns:
        ``best``: CSI of the best mix, its shares of atoms (``weights``) and its ``structures`` by upstream;
        ``equal``: the same of as many structures of each; ``single``: CSI by upstream; ``adding``: CSI by what is
        added to the nearest upstream, ``ratio`` structures of it per structure.

    Raises:
        InputError: A file cannot be read, or was embedded unlike the others.
    """
    parts, target = [], downstream.moments
    for upstream in upstreams:
        require_alike(upstream, downstream)
        atoms = upstream.provenance["atoms"] / upstream.provenance["drawn"]
        parts.append(Upstream(upstream.name, upstream.moments, atoms))
    single = {each.name: frechet(each.moments, target, device=device).value for each in parts}
    best = best_mix(parts, target, device=device)
    equal = mix_of_structures(parts, np.ones(len(parts)), target, device=device)
    nearest = min(parts, key=lambda each: single[each.name])
    return {
        "downstream": downstream.name,
        "extractor": downstream.provenance["extractor"],
        "best": {"csi": best.csi, "weights": best.weights, "structures": budget(parts, best, structures)},
        "equal": {"csi": equal.csi, "weights": equal.weights, "structures": budget(parts, equal, structures)},
        "single": single,
        "adding": [
            {"to": nearest.name, "added": other.name, "ratio": ratio, "csi": mix.csi}
            for other in parts
            if other is not nearest
            for ratio, mix in adding(nearest, other, target, device=device).items()
        ],
        "versions": versions("numpy", "scipy"),
    }


def write_mixes(path: Path, found: Mapping[str, Any]) -> None:
    """Writes what :func:`measure_mixes` found as JSON."""
    write_json(path, SCHEMA, found)


def read_mixes(path: Path) -> dict[str, Any]:
    """Reads what :func:`write_mixes` wrote.

    Raises:
        InputError: The file is missing, or holds something else.
    """
    return read_json(path, SCHEMA)


def mixture_table(paths: Sequence[Path]) -> pd.DataFrame:
    """Returns the mixes in long form: a row per downstream dataset, mix and upstream.

    ``mix`` is ``best``, ``equal``, ``only <upstream>`` or ``<upstream> + <ratio> <upstream>``; ``weight`` is a share of
    atoms, and ``structures`` the part of the budget, where the mix has one.
    """
    rows = []
    for path in paths:
        found = read_mixes(path)
        names = {key: found[key] for key in ("extractor", "downstream")}
        for mix in ("best", "equal"):
            for upstream, weight in found[mix]["weights"].items():
                row = {"mix": mix, "csi": found[mix]["csi"], "upstream": upstream, "weight": weight}
                rows.append(names | row | {"structures": found[mix]["structures"][upstream]})
        for upstream, csi in found["single"].items():
            rows.append(names | {"mix": f"only {upstream}", "csi": csi, "upstream": upstream, "weight": 1.0})
        for entry in found["adding"]:
            mix = f"{entry['to']} + {entry['ratio']:g} {entry['added']}"
            rows.append(names | {"mix": mix, "csi": entry["csi"], "upstream": entry["added"]})
    return pd.DataFrame(rows)
