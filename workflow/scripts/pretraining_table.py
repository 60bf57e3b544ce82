"""Collects the cards of the pretrained models into one table."""

from atomcsi.files import write_table
from atomcsi.jobs import job
from atomcsi.training.tables import pretraining_table

with job(snakemake.log[0]):
    write_table(snakemake.output.table, pretraining_table([*snakemake.input.named, *snakemake.input.choice]))
