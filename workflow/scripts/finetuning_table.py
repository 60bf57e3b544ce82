"""Collects the metrics of all finetunings into one table."""

from atomcsi.files import write_table
from atomcsi.jobs import job
from atomcsi.training.tables import finetuning_table

with job(snakemake.log[0]):
    write_table(snakemake.output.table, finetuning_table([*snakemake.input.named, *snakemake.input.choice]))
