"""Measures the distance between two embedded datasets."""

from pathlib import Path

from atomcsi.jobs import job
from atomcsi.selection import measure

with job(snakemake.log[0]):
    measure(
        Path(snakemake.input.upstream),
        Path(snakemake.input.downstream),
        Path(snakemake.output.distance),
        distance=snakemake.wildcards.distance,
    )
