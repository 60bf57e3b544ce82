"""Averages the errors of finetunings over the folds of their datasets."""

import pandas as pd

from atomcsi.files import write_table
from atomcsi.jobs import job
from atomcsi.training.tables import fold_table

with job(snakemake.log[0]):
    write_table(snakemake.output.table, fold_table(pd.read_csv(snakemake.input.finetuning), snakemake.params.families))
