"""Collects the effective ranks of all datasets."""

import pandas as pd

from atomcsi.files import write_table
from atomcsi.jobs import job

with job(snakemake.log[0]):
    write_table(snakemake.output.table, pd.concat(map(pd.read_csv, snakemake.input.tables)))
