"""Writes the report of the run."""

from pathlib import Path

from atomcsi.embeddings import Embedding
from atomcsi.files import versions
from atomcsi.jobs import job
from atomcsi.project import Project
from atomcsi.report.experiment_page import shown_experiments
from atomcsi.report.page import merged_versions, write_report
from atomcsi.report.tables import Tables
from atomcsi.training.tables import finetuning_table, pretraining_table

with job(snakemake.log[0]):
    tables = Tables.read(
        csi=snakemake.input.csi,
        selections=snakemake.input.selections,
        elements=snakemake.input.elements,
        mixtures=snakemake.input.mixtures,
        finetuning=snakemake.input.finetuning,
        pretraining=snakemake.input.pretraining,
        cards=[*snakemake.input.named, *snakemake.input.choice],
    )
    own = {*snakemake.input.named, *snakemake.input.choice, *snakemake.input.named_metrics}
    own |= {*snakemake.input.choice_metrics}
    cards = [path for path in snakemake.input.experiment_cards if path not in own]
    metrics = [path for path in snakemake.input.experiment_metrics if path not in own]
    embeddings = [Embedding(path).provenance for path in snakemake.input.embeddings]
    write_report(
        Path(snakemake.output.page),
        project=Project.from_entries(snakemake.params.entries),
        tables=tables,
        figures={Path(path).stem: Path(path) for path in snakemake.input.figures},
        experiments=shown_experiments([Path(path) for path in snakemake.input.experiments]),
        more_experiments=snakemake.params.more_experiments,
        more_trainings={"pretraining": pretraining_table(cards), "finetuning": finetuning_table(metrics)},
        # What trained and embedded may be of another day or machine than what writes the page.
        provenance={
            "versions that embedded": merged_versions(provenance["versions"] for provenance in embeddings),
            "versions that pretrained": merged_versions(card["versions"] for card in tables.cards),
            "versions that wrote this page": versions("numpy", "scipy", "pandas", "matplotlib", "snakemake"),
        },
    )
