"""Writes the report of the run."""

from pathlib import Path

from atomcsi.config import Project
from atomcsi.files import versions
from atomcsi.jobs import job
from atomcsi.report.outcome import Tables
from atomcsi.report.page import write_report

with job(snakemake.log[0]):
    write_report(
        Path(snakemake.output.page),
        project=Project.from_entries(snakemake.params.entries),
        tables=Tables.read(
            csi=snakemake.input.csi,
            selections=snakemake.input.selections,
            finetuning=snakemake.input.finetuning,
            pretraining=snakemake.input.pretraining,
            cards=[*snakemake.input.named, *snakemake.input.choice],
        ),
        figures={Path(path).stem: Path(path) for path in snakemake.input.figures},
        provenance={"versions": versions("torch", "fairchem-core", "sevenn", "numpy", "scipy", "snakemake")},
    )
