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
