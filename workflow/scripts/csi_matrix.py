"""Collects all distances into one table, and what makes them into another."""

from atomcsi.files import write_table
from atomcsi.jobs import job
from atomcsi.measure import distance_table, element_table, read_measurements

with job(snakemake.log[0]):
    measurements = read_measurements(snakemake.input.distances)
    write_table(snakemake.output.elements, element_table(measurements))
    write_table(snakemake.output.table, distance_table(measurements))
