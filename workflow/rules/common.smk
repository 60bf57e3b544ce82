import json
import os
import shlex
import signal
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from atomcsi.catalogue import Conversion
from atomcsi.project import load_project, missing_checkpoint, missing_init
from atomcsi.errors import AtomcsiError
from atomcsi.registry import (
    BACKBONES,
    DISTANCES,
    EXTRACTORS,
    READERS,
    STEPS,
    implementation,
)

try:
    PROJECT = load_project(config, path=workflow.configfiles[-1], root=workflow.basedir)
except AtomcsiError as error:
    raise WorkflowError(str(error)) from None

# `atomcsi` is found beside the Python that runs Snakemake, even if its environment is not activated, or another one is.
# Snakemake's own environments are activated before this, and would be hidden by it.
if DeploymentMethod.CONDA not in workflow.deployment_settings.deployment_method:
    shell.prefix(
        f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"; '
    )

# A cluster's warning that time is up reaches all processes of a job: trainings save, and Snakemake has to wait for them.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)

RUN = PROJECT.run
PRETRAININGS = PROJECT.pretrainings
EXPERIMENTS = PROJECT.experiments
CSI_FIGURES = ["csi-matrix", "csi-sample-size"]
if RUN.embedding.aggregation == "flat" and RUN.distance.startswith("frechet"):
    CSI_FIGURES.append("csi-elements")
# Datasets that are folds, with what they are folds of.
FAMILIES = {
    dataset: PROJECT.datasets.raw[dataset]
    for dataset in PROJECT.all_downstream
    if PROJECT.datasets[dataset].split.kind == "folds"
}
FOLDS = {name: FAMILIES[name] for name in PROJECT.downstream if name in FAMILIES}
TRAINING_FIGURES = ["finetuning", "csi-against-mae", "learning-curves"]
# What datasets of either role are embedded as, by the name of their embeddings: extractor and sampling.
EMBEDDED = {
    role: {
        PROJECT.name_of_embedding(sampled, role): (
            sampled.extractor,
            getattr(sampled, role),
        )
        for sampled in PROJECT.samples.values()
    }
    for role in ("upstream", "downstream")
}


def one_of(ids):
    return "|".join(sorted(ids))


wildcard_constraints:
    dataset=one_of(PROJECT.datasets),
    raw=one_of(set(PROJECT.datasets.raw.values())),
    upstream=one_of(RUN.upstream),
    judge=one_of(RUN.upstream),
    downstream=one_of(PROJECT.all_downstream),
    split="train|val|test",
    embedding=one_of([name for names in EMBEDDED.values() for name in names]),
    comparison=one_of(PROJECT.samples),
    aggregation="flat|mean|sum|max",
    distance=one_of(DISTANCES),
    backbone=one_of(PROJECT.backbones),
    init=one_of([*PRETRAININGS, *RUN.checkpoints, "scratch"]),
    task=one_of(PROJECT.tasks),
    seed=r"\d+",
    figure=one_of([*CSI_FIGURES, *TRAINING_FIGURES]),
    experiment=one_of([*EXPERIMENTS, *PROJECT.unfit]) or "none",


# Params are plain data: Snakemake reruns a job when they change, and only then.


# Implementations that numbers depend on are params too, by version (`impl`): a fix reruns what it changes, an edit
# of a comment nothing.


# What jobs ask of a cluster grows with the attempt.

# A demo's jobs take seconds: a cluster runs several of them in one of its own, see `group-components` in profiles/slurm.
# Larger runs have no small jobs.
SMALL = RUN.scale == "demo"

# How often a training that fails is repeated, whatever `--retries` says: a day each, and the largest of the paper's take
# two weeks. Not inside a cluster's job: it would be repeated there, where its time is up or its memory too little.
RETRIES_OF_TRAINING = 20 if workflow.is_main_process and not SMALL else None


def megabytes(base, per_megabyte=0):
    """Memory of a job: a base for its libraries, and some for its input. Mapped files count like any memory.

    Four times that at most: trainings are repeated more often, for want of time.
    """
    return lambda wildcards, input, attempt: round(
        (base + per_megabyte * input.size_mb) * min(attempt, 4)
    )


def minutes(expected, attempt):
    """Time of a job: at most a day, for what takes longer goes on where it was when it is retried."""
    return min(round(expected * attempt), 1440)


# Minutes that a training or scoring takes besides: imports, graphs, evaluation.
START = 5 if SMALL else 30


def minutes_of_training(settings, attempt):
    """Ten structures a second are what GemNet-OC-L reaches on one GPU, and a small one on a processor."""
    return minutes(START + settings.budget / 600, attempt)


def in_repository(path):
    # Relative, so that a repository that moves reruns nothing.
    return os.path.relpath(Path(workflow.basedir) / path)


def fetched_extractors():
    return [name for name, spec in PROJECT.extractors.items() if spec.source]


def source_of_checkpoint(wildcards):
    return [PROJECT.extractors[wildcards.extractor].source.model_dump(mode="json")]


def raw_files(wildcards):
    # The datasets of a family share their files.
    return next(
        PROJECT.datasets[dataset].files
        for dataset, raw in PROJECT.datasets.raw.items()
        if raw == wildcards.raw
    )


def packaged_files(wildcards):
    files = raw_files(wildcards)
    return [in_repository(file.path) for file in files if file.path is not None]


def manifest_of(wildcards):
    return f"resources/raw/{PROJECT.datasets.raw[wildcards.dataset]}/manifest.json"


def extractor_of(wildcards):
    return PROJECT.extractors[embedded(wildcards)[0]]


def embedded(wildcards):
    """Extractor and sampling that a dataset is embedded with."""
    return EMBEDDED[PROJECT.datasets[wildcards.dataset].role][wildcards.embedding]


def checkpoint_file(wildcards):
    # Said here, where it is needed, and not before: data can be made without it.
    name = embedded(wildcards)[0]
    if problem := missing_checkpoint(
        PROJECT, workflow.configfiles[-1], workflow.basedir, name
    ):
        raise WorkflowError(str(problem))
    file = PROJECT.extractors[name].options.get("checkpoint")
    if file is None:
        return []
    return file if Path(file).parts[0] == "results" else in_repository(file)


def manifest_of_checkpoint(wildcards):
    name = embedded(wildcards)[0]
    fetched = name in fetched_extractors()
    return f"resources/checkpoints/{name}/manifest.json" if fetched else []


def implementation_of_conversion(wildcards):
    reader = PROJECT.datasets[wildcards.dataset].reader.format
    return [implementation(READERS, reader), f"convert@{STEPS['convert']}"]


def files_entry(wildcards):
    return [file.model_dump(mode="json") for file in raw_files(wildcards)]


def conversion_entry(wildcards):
    fields = set(Conversion.model_fields)
    return PROJECT.datasets[wildcards.dataset].model_dump_json(include=fields)


def extractor_entry(wildcards):
    # Where a checkpoint comes from changes nothing.
    return extractor_of(wildcards).model_dump(mode="json", exclude={"source"})


def implementation_of_embedding(wildcards):
    extractor = extractor_of(wildcards).implementation
    return [implementation(EXTRACTORS, extractor), f"embed@{STEPS['embed']}"]


def sampling_entry(wildcards):
    return embedded(wildcards)[1].model_dump(mode="json")


def embeddings_of_upstreams(wildcards):
    name = PROJECT.name_of_embedding(PROJECT.samples[wildcards.comparison], "upstream")
    return expand(
        "results/embeddings/{embedding}/{upstream}.h5",
        embedding=name,
        upstream=RUN.upstream,
    )


def embedding_of_downstream(wildcards):
    sampled = PROJECT.samples[wildcards.comparison]
    name = PROJECT.name_of_embedding(sampled, "downstream")
    return f"results/embeddings/{name}/{wildcards.downstream}.h5"


def embeddings_of_the_run(wildcards):
    return expand(
        "results/embeddings/{extractor}/{dataset}.h5",
        extractor=RUN.embedding.extractor,
        dataset=PROJECT.used_datasets,
    )


def effective_ranks(datasets):
    # The folds of a dataset are much alike: one is enough.
    first = {}
    for dataset in datasets:
        first.setdefault(FAMILIES.get(dataset, dataset), dataset)
    return expand(
        "results/effective_rank/{extractor}/{dataset}.csv",
        extractor=RUN.embedding.extractor,
        dataset=first.values(),
    )


def effective_ranks_of_the_run(wildcards):
    return effective_ranks(PROJECT.used_datasets)


def distances_of_the_run(wildcards):
    return expand(
        "results/csi/{extractor}/{aggregation}/{distance}/{downstream}.json",
        extractor=RUN.embedding.extractor,
        aggregation=RUN.embedding.aggregation,
        distance=PROJECT.distances,
        downstream=PROJECT.downstream,
    )


def distances_that_select(wildcards):
    return expand(
        "results/csi/{extractor}/{aggregation}/{distance}/{downstream}.json",
        extractor=RUN.embedding.extractor,
        aggregation=RUN.embedding.aggregation,
        distance=RUN.distance,
        downstream=wildcards.downstream,
    )


def mixtures_of_the_run(wildcards):
    return expand(
        "results/mixtures/{extractor}/{downstream}.json",
        extractor=RUN.embedding.extractor,
        downstream=PROJECT.downstream,
    )


def selections_of_the_run(wildcards):
    return expand("results/selection/{downstream}.json", downstream=PROJECT.downstream)


def tables_of_folds(wildcards):
    return ["results/folds.csv"] if FOLDS else []
