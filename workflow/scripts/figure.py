"""Draws one figure, with the table that it draws."""

from pathlib import Path

from atomcsi.jobs import job
from atomcsi.report.figures import draw
from atomcsi.report.outcome import Tables

with job(snakemake.log[0]):
    tables = Tables.read(
        csi=snakemake.input.csi,
        selections=snakemake.input.selections,
        finetuning=snakemake.input.finetuning,
        pretraining=snakemake.input.pretraining,
        cards=[*snakemake.input.named, *snakemake.input.choice],
    )
    draw(snakemake.wildcards.figure, tables, Path(snakemake.output.figure))
