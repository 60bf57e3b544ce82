"""Draws one figure, with the table that it draws."""

from pathlib import Path

from atomcsi.jobs import job
from atomcsi.report.figures import draw
from atomcsi.report.tables import Tables

with job(snakemake.log[0]):
    figure = Path(snakemake.output.figure)
    tables = Tables.read(
        csi=snakemake.input.csi,
        selections=snakemake.input.selections,
        elements=snakemake.input.elements,
        finetuning=snakemake.input.get("finetuning"),
        pretraining=snakemake.input.get("pretraining"),
        cards=[*snakemake.input.get("named", []), *snakemake.input.get("choice", [])],
    )
    draw(figure.stem, tables, figure)
