"""Fetches and unpacks the raw files of a dataset."""

from pathlib import Path

from atomcsi.config import SourceFile
from atomcsi.download import fetch_files
from atomcsi.jobs import job

with job(snakemake.log[0]):
    manifest = Path(snakemake.output.manifest)
    files = [SourceFile.model_validate(file) for file in snakemake.params.files]
    repository = Path(snakemake.scriptdir).resolve().parents[1]
    fetch_files(files, snakemake.wildcards.dataset, manifest.parent, repository, manifest)
