"""Finds the mix of upstream datasets that is nearest to one downstream dataset."""

from pathlib import Path

from atomcsi.embeddings import Embedding
from atomcsi.jobs import job
from atomcsi.mixtures import measure_mixes, write_mixes

with job(snakemake.log[0]):
    found = measure_mixes(
        [Embedding(path) for path in snakemake.input.upstream],
        Embedding(snakemake.input.downstream),
        structures=snakemake.params.structures,
        device="cuda" if snakemake.resources.get("gpu") else "cpu",
    )
    write_mixes(Path(snakemake.output.mixtures), found)
