"""Measures the effective rank of all embeddings at atom and at structure level."""

from pathlib import Path

import pandas as pd

from atomcsi.effective_rank import effective_ranks
from atomcsi.files import write_table
from atomcsi.jobs import job

with job(snakemake.log[0]):
    tables = [effective_ranks(Path(path), sizes=snakemake.params.sizes) for path in snakemake.input.embeddings]
    write_table(snakemake.output.table, pd.concat(tables))
