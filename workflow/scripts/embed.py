"""Embeds a sample of a dataset."""

from pathlib import Path

from atomcsi.jobs import job, keep_freed_memory, set_threads

with job(snakemake.log[0]):
    set_threads(1)  # more threads that were granted become processes
    keep_freed_memory()
    from atomcsi.config import ExtractorSpec, Sampling
    from atomcsi.download import fetched
    from atomcsi.embed import embed
    from atomcsi.extraction import build_extractor, worker_pool
    from atomcsi.structure_lmdb import StructureLMDB

    spec = ExtractorSpec.model_validate(snakemake.params.extractor)
    file = snakemake.input.get("checkpoint")
    checkpoint = Path(file) if file else None
    if manifest := snakemake.input.get("fetched"):
        (checkpoint,) = fetched(Path(manifest))
    extractor = build_extractor(spec, checkpoint)
    with worker_pool(spec, snakemake.threads, checkpoint=checkpoint) as pool:
        embed(
            StructureLMDB(snakemake.input.lmdb),
            Path(snakemake.output.embedding),
            extractor=extractor,
            name=snakemake.params.name,
            spec=spec,
            sampling=Sampling.model_validate(snakemake.params.sampling),
            pool=pool,
        )
