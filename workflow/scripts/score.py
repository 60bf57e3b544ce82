"""Scores the structures of a dataset by how hard they are for a pretrained model."""

from pathlib import Path

from atomcsi.jobs import job, set_threads

with job(snakemake.log[0]):
    set_threads(snakemake.threads)
    import torch

    from atomcsi.structure_lmdb import StructureLMDB
    from atomcsi.training.scoring import score

    score(
        Path(snakemake.params.judge),
        StructureLMDB(snakemake.input.lmdb),
        Path(snakemake.output.difficulty),
        # What a GPU leaves over reads ahead.
        workers=snakemake.threads - 1 if torch.cuda.is_available() else 0,
    )
