"""Selects the upstream dataset for one downstream dataset."""

from atomcsi.jobs import job
from atomcsi.selection import write_selection

with job(snakemake.log[0]):
    write_selection(snakemake.input.table, snakemake.output.selection, snakemake.wildcards.downstream)
