"""Embeds a sample of a dataset."""

from pathlib import Path

from atomcsi.jobs import job, set_threads

with job(snakemake.log[0]):
    set_threads(snakemake.threads)
    from atomcsi.config import Embedding, ExtractorSpec, Sampling
    from atomcsi.embeddings import build_extractor, embed
    from atomcsi.structure_lmdb import StructureLMDB

    spec = ExtractorSpec.model_validate(snakemake.params.extractor)
    embed(
        StructureLMDB(snakemake.input.lmdb),
        Path(snakemake.output.embedding),
        extractor=build_extractor(spec),
        name=snakemake.wildcards.extractor,
        embedding=Embedding.model_validate(snakemake.params.embedding),
        sampling=Sampling.model_validate(snakemake.params.sampling),
        max_atoms=spec.max_atoms,
    )
