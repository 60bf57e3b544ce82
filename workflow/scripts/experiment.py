"""Draws the figure of an experiment, with the table that it draws."""

from pathlib import Path

from atomcsi.experiments import Experiment
from atomcsi.jobs import job

with job(snakemake.log[0]):
    from atomcsi.report.experiment import Results, write_experiment

    results = Results.read(
        snakemake.wildcards.experiment,
        Experiment.model_validate(snakemake.params.experiment),
        scale=snakemake.params.scale,
        distances=snakemake.input.distances,
        labels=snakemake.params.labels,
        metrics=snakemake.input.metrics,
        starts=snakemake.params.starts,
        cards=snakemake.input.cards,
        ranks=snakemake.input.ranks,
        paper=next((Path(path).parent for path in snakemake.input.paper), None),
    )
    write_experiment(results, Path(snakemake.output.figure).with_suffix(""))
