"""Converts one split of a dataset to LMDB."""

from pathlib import Path

from atomcsi.catalogue import Conversion
from atomcsi.convert import convert
from atomcsi.jobs import job

with job(snakemake.log[0]):
    convert(
        Conversion.model_validate(snakemake.params.conversion),
        snakemake.wildcards.dataset,
        snakemake.wildcards.split,
        raw=Path(snakemake.input.manifest).parent,
        path=Path(snakemake.output.lmdb),
    )
