"""Measures the distance of all upstream datasets to one downstream dataset."""

from pathlib import Path

from atomcsi.jobs import job
from atomcsi.measure import measure, write_measurement

with job(snakemake.log[0]):
    found = measure(
        [Path(path) for path in snakemake.input.upstream],
        Path(snakemake.input.downstream),
        distance=snakemake.wildcards.distance,
        aggregation=snakemake.wildcards.aggregation,
        # A site whose GPUs are worth it for this grants one to the rule, see profiles/slurm.
        device="cuda" if snakemake.resources.get("gpu") else "cpu",
    )
    write_measurement(Path(snakemake.output.distances), found)
