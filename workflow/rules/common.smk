import json
import os
import shlex
import signal
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

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

# `atomcsi` is found beside the Python that runs Snakemake, even if its environment is not activated.
shell.prefix(f'export PATH="$PATH:{Path(sys.executable).parent}"; ')

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


# What jobs ask of a cluster grows with every attempt.

# A demo's jobs take seconds: a cluster runs several of them in one of its own, see `group-components` in profiles/slurm.
# Larger runs have no small jobs.
SMALL = RUN.scale == "demo"


def megabytes(base, per_megabyte=0):
    """Memory of a job: a base for its libraries, and some for its input. Mapped files count like any memory."""
    return lambda wildcards, input, attempt: round(
        (base + per_megabyte * input.size_mb) * attempt
    )


def minutes(expected, attempt):
    """Time of a job: at most a day, for what takes longer goes on where it was when it is retried."""
    return min(round(expected * attempt), 1440)


def minutes_of_training(settings, attempt):
    """Ten structures a second are what GemNet-OC-L reaches on one GPU, and a small one on a processor."""
    return minutes(30 + settings.budget / 600, attempt)


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


def backbone_entry(wildcards):
    return PROJECT.backbones[wildcards.backbone].model_dump_json()


def implementation_of_training(wildcards):
    backbone = PROJECT.backbones[wildcards.backbone].implementation
    return [implementation(BACKBONES, backbone), f"train@{STEPS['train']}"]


def implementation_of_scoring(wildcards):
    backbone = PROJECT.backbones[wildcards.backbone].implementation
    return [implementation(BACKBONES, backbone), f"score@{STEPS['score']}"]


def implementation_of_finetuning(wildcards):
    return [*implementation_of_training(wildcards), f"finetune@{STEPS['finetune']}"]


def task_entry(wildcards):
    return PROJECT.tasks[wildcards.task].model_dump_json(exclude={"title"})


def task_splits(wildcards):
    dataset = PROJECT.tasks[wildcards.task].dataset
    return {
        split: f"results/lmdb/{dataset}/{split}.lmdb"
        for split in ("train", "val", "test")
    }


def splits_of_pretraining(split):
    return lambda wildcards: expand(
        f"results/lmdb/{{dataset}}/{split}.lmdb",
        dataset=PRETRAININGS[wildcards.init].datasets,
    )


def mixtures_of_pretraining(wildcards):
    # Of all mixes, only those by CSI depend on what was measured.
    downstream = PRETRAININGS[wildcards.init].downstream
    return (
        f"results/mixtures/{RUN.embedding.extractor}/{downstream}.json"
        if downstream
        else []
    )


def difficulty_of_pretraining(wildcards):
    spec = PRETRAININGS[wildcards.init].spec
    if spec is None or spec.kind != "ranked":
        return []
    return f"results/difficulty/{wildcards.backbone}/{spec.judge}/{spec.dataset}.h5"


def pretrain_settings(wildcards):
    return PROJECT.pretrain_settings(wildcards.init).model_dump_json()


def mix_option(wildcards, input):
    spec = PRETRAININGS[wildcards.init].spec
    if spec is None:
        return ""
    mix = {
        "name": wildcards.init,
        "mix": spec.model_dump(mode="json", exclude={"pretrain"}),
    }
    found = f" --mixtures {input.mixtures}" if input.mixtures else ""
    hard = f" --difficulty {input.difficulty}" if input.difficulty else ""
    return f"--mix {shlex.quote(json.dumps(mix))}{found}{hard}"


def graphs_of(datasets):
    # Null where a dataset leaves its graph to the backbone.
    graphs = [PROJECT.datasets[dataset].graph for dataset in datasets]
    return json.dumps([graph and graph.model_dump(mode="json") for graph in graphs])


def graphs_of_pretraining(wildcards):
    return graphs_of(PRETRAININGS[wildcards.init].datasets)


def graphs_of_task(wildcards):
    return graphs_of([PROJECT.tasks[wildcards.task].dataset])


def pretrained_model(wildcards):
    if wildcards.init == "scratch":
        return []
    if wildcards.init in RUN.checkpoints:
        if problem := missing_init(
            PROJECT, wildcards.init, workflow.configfiles[-1], workflow.basedir
        ):
            raise WorkflowError(str(problem))
        return in_repository(RUN.checkpoints[wildcards.init])
    return multiext(
        f"results/pretrain/{wildcards.backbone}/{wildcards.init}/seed{wildcards.seed}/model",
        ".json",
        ".safetensors",
    )


def init_option(wildcards, input):
    if wildcards.init == "scratch":
        return ""
    if wildcards.init in RUN.checkpoints:
        return f"--init {shlex.quote(input.init)} --init-name {wildcards.init}"
    return f"--init {Path(input.init[0]).parent}"


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


def choice_for(task):
    """The upstream that the init `csi` stands for; known once the selection has run."""
    selection = checkpoints.select.get(
        downstream=PROJECT.tasks[task].dataset
    ).output.selection
    return json.loads(Path(selection).read_text())["selected"]


def cards_of(inits):
    return expand(
        "results/pretrain/{backbone}/{init}/seed{seed}/model.json",
        backbone=RUN.backbone,
        init=inits,
        seed=RUN.seeds,
    )


def metrics_of(inits, task):
    return expand(
        "results/finetune/{backbone}/{init}__{task}/seed{seed}/metrics.json",
        backbone=RUN.backbone,
        init=inits,
        task=task,
        seed=RUN.seeds,
    )


# What the run names, and what only CSI's choice adds, apart: training on the named ones need not wait for the choice.

NAMED = [init for init in RUN.inits if init != "csi"]


def chosen_inits(task):
    return (
        [choice_for(task)]
        if "csi" in RUN.inits and choice_for(task) not in NAMED
        else []
    )


def starts_of(inits, task):
    return [PROJECT.start(init, task) for init in inits]


def cards_of_named_inits(wildcards):
    starts = [start for task in RUN.tasks for start in starts_of(NAMED, task)]
    return cards_of([start for start in dict.fromkeys(starts) if start in PRETRAININGS])


def cards_of_the_choice(wildcards):
    return cards_of(sorted({init for task in RUN.tasks for init in chosen_inits(task)}))


def metrics_of_named_inits(wildcards):
    return [
        path for task in RUN.tasks for path in metrics_of(starts_of(NAMED, task), task)
    ]


def metrics_of_the_choice(wildcards):
    return [path for task in RUN.tasks for path in metrics_of(chosen_inits(task), task)]


def tables_of_folds(wildcards):
    return ["results/folds.csv"] if FOLDS else []
