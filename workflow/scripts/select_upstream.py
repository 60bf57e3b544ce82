"""Selects the upstream dataset for one downstream dataset."""

from pathlib import Path

from atomcsi.jobs import job
from atomcsi.selection import write_selection

with job(snakemake.log[0]):
    write_selection(Path(snakemake.input.distances[0]), Path(snakemake.output.selection))
