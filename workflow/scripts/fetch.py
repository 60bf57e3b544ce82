"""Fetches and unpacks the raw files of a dataset, or fetches the checkpoint of an extractor."""

from pathlib import Path

from atomcsi.catalogue import SourceFile
from atomcsi.download import fetch_files
from atomcsi.jobs import job

with job(snakemake.log[0]):
    manifest = Path(snakemake.output.manifest)
    files = [SourceFile.model_validate(file) for file in snakemake.params.files]
    repository = Path(snakemake.scriptdir).resolve().parents[1]
    # The mirror is no param: another one must not fetch again what is here.
    mirror = snakemake.config.get("mirror")
    (name,) = snakemake.wildcards
    fetch_files(files, name, manifest.parent, repository, manifest, mirror=mirror)
