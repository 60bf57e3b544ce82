"""Measures the distance of all upstream datasets to one downstream dataset."""

from pathlib import Path

from atomcsi.embeddings import Embedding
from atomcsi.jobs import job
from atomcsi.measure import measure, write_measurement

with job(snakemake.log[0]):
    aggregation = snakemake.wildcards.aggregation
    found = measure(
        [Embedding(path, aggregation) for path in snakemake.input.upstream],
        Embedding(snakemake.input.downstream, aggregation),
        distance=snakemake.wildcards.distance,
        # A site whose GPUs are worth it for this grants one to the rule, see profiles/slurm.
        device="cuda" if snakemake.resources.get("gpu") else "cpu",
    )
    write_measurement(Path(snakemake.output.distances), found)
