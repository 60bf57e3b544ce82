"""Measures the effective rank of an embedding at atom and at structure level."""

from pathlib import Path

from atomcsi.effective_rank import effective_ranks
from atomcsi.files import write_table
from atomcsi.jobs import job

with job(snakemake.log[0]):
    ranks = effective_ranks(Path(snakemake.input.embedding), sizes=snakemake.params.sizes)
    write_table(snakemake.output.table, ranks)
