"""Collects all distances into one table, and what makes them into another."""

from atomcsi.files import write_table
from atomcsi.jobs import job
from atomcsi.measure import distance_table, element_table

with job(snakemake.log[0]):
    write_table(snakemake.output.elements, element_table(snakemake.input.distances))
    write_table(snakemake.output.table, distance_table(snakemake.input.distances))
