"""Collects all distances into one table."""

from atomcsi.files import write_table
from atomcsi.jobs import job
from atomcsi.selection import distance_table

with job(snakemake.log[0]):
    write_table(snakemake.output.table, distance_table(snakemake.input.distances))
