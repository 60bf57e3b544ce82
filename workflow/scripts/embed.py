"""Embeds a sample of a dataset."""

from pathlib import Path

from atomcsi.jobs import job, set_threads

with job(snakemake.log[0]):
    set_threads(snakemake.threads)
    from atomcsi.config import ExtractorSpec, Sampling
    from atomcsi.embed import build_extractor, embed
    from atomcsi.structure_lmdb import StructureLMDB

    spec = ExtractorSpec.model_validate(snakemake.params.extractor)
    checkpoint = snakemake.input.get("checkpoint")
    embed(
        StructureLMDB(snakemake.input.lmdb),
        Path(snakemake.output.embedding),
        extractor=build_extractor(spec, Path(checkpoint) if checkpoint else None),
        name=snakemake.wildcards.extractor,
        spec=spec,
        sampling=Sampling.model_validate(snakemake.params.sampling),
    )
