"""Collects all mixes into one table."""

from atomcsi.files import write_table
from atomcsi.jobs import job
from atomcsi.mixtures import mixture_table

with job(snakemake.log[0]):
    write_table(snakemake.output.table, mixture_table(snakemake.input.mixtures))
