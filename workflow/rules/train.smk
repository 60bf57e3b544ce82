rule pretrain:
    input:
        train=splits_of_pretraining("train"),
        val=splits_of_pretraining("val"),
        mixtures=mixtures_of_pretraining,
        difficulty=difficulty_of_pretraining,
    output:
        model="results/pretrain/{backbone}/{init}/seed{seed}/model.safetensors",
        card="results/pretrain/{backbone}/{init}/seed{seed}/model.json",
        readme="results/pretrain/{backbone}/{init}/seed{seed}/README.md",
    log:
        "results/logs/pretrain/{backbone}/{init}/seed{seed}.log",
    benchmark:
        "results/benchmarks/pretrain/{backbone}/{init}/seed{seed}.tsv"
    priority: 5
    retries: RETRIES_OF_TRAINING
    group:
        "training" if SMALL else None
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=1,
        # A site that shares the steps of a training among GPUs, or divides them to need less memory, replaces these: see
        # docs/training.md and docs/cluster.md. Results depend on them by rounding at most.
        devices=1,
        nodes=1,
        parts=1,
        launcher="",
        mem_mb=megabytes(4000, per_megabyte=1),
        runtime=lambda wildcards, attempt: minutes_of_training(
            PROJECT.pretrain_settings(wildcards.init), attempt
        ),
    params:
        folder=subpath(output.card, parent=True),
        backbone=backbone_entry,
        settings=pretrain_settings,
        mix=mix_option,
        graphs=graphs_of_pretraining,
        impl=implementation_of_training,
    message:
        "Pretrain {wildcards.backbone} on {wildcards.init}, seed {wildcards.seed}"
    shell:
        "{resources.launcher} atomcsi pretrain --train {input.train} --val {input.val} --out {params.folder}"
        " {params.mix} --graphs {params.graphs:q}"
        " --backbone {params.backbone:q} --settings {params.settings:q}"
        " --devices {resources.devices} --nodes {resources.nodes} --parts {resources.parts}"
        " --seed {wildcards.seed} --threads {threads} --log {log}"


# The judge of the mixes by difficulty is a pretraining of the run, with one seed for all of theirs: they train on the
# same structures.
rule score:
    input:
        lmdb="results/lmdb/{dataset}/train.lmdb",
        card="results/pretrain/{backbone}/{judge}/seed0/model.json",
        model="results/pretrain/{backbone}/{judge}/seed0/model.safetensors",
    output:
        difficulty="results/difficulty/{backbone}/{judge}/{dataset}.h5",
    log:
        "results/logs/score/{backbone}/{judge}/{dataset}.log",
    benchmark:
        "results/benchmarks/score/{backbone}/{judge}/{dataset}.tsv"
    priority: 5
    group:
        "training" if SMALL else None
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=1,
        # It launches nothing, but jobs of a group must agree on what is no number.
        launcher="",
        mem_mb=megabytes(4000, per_megabyte=1),
        # A megabyte holds about 2000 molecules; thirty a second are three times what a training reaches.
        runtime=lambda wildcards, input, attempt: minutes(
            START + input.size_mb, attempt
        ),
    params:
        judge=subpath(input.card, parent=True),
        impl=implementation_of_scoring,
    message:
        "Score the structures of {wildcards.dataset} by {wildcards.backbone} pretrained on {wildcards.judge}"
    script:
        "../scripts/score.py"


rule finetune:
    input:
        unpack(task_splits),
        init=pretrained_model,
    output:
        model="results/finetune/{backbone}/{init}__{task}/seed{seed}/model.safetensors",
        card="results/finetune/{backbone}/{init}__{task}/seed{seed}/model.json",
        metrics="results/finetune/{backbone}/{init}__{task}/seed{seed}/metrics.json",
        readme="results/finetune/{backbone}/{init}__{task}/seed{seed}/README.md",
    log:
        "results/logs/finetune/{backbone}/{init}__{task}/seed{seed}.log",
    benchmark:
        "results/benchmarks/finetune/{backbone}/{init}__{task}/seed{seed}.tsv"
    retries: RETRIES_OF_TRAINING
    group:
        "training" if SMALL else None
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu=1,
        # A site that shares the steps of a training among GPUs, or divides them to need less memory, replaces these: see
        # docs/training.md and docs/cluster.md. Results depend on them by rounding at most.
        devices=1,
        nodes=1,
        parts=1,
        launcher="",
        mem_mb=megabytes(4000, per_megabyte=1),
        runtime=lambda wildcards, attempt: minutes_of_training(
            PROJECT.tasks[wildcards.task].finetune, attempt
        ),
    params:
        folder=subpath(output.card, parent=True),
        init=init_option,
        backbone=backbone_entry,
        task=task_entry,
        graphs=graphs_of_task,
        impl=implementation_of_finetuning,
    message:
        "Finetune {wildcards.init} on {wildcards.task}, seed {wildcards.seed}"
    shell:
        "{resources.launcher} atomcsi finetune --train {input.train} --val {input.val} --test {input.test}"
        " --out {params.folder} {params.init} --name {wildcards.task}"
        " --graphs {params.graphs:q}"
        " --backbone {params.backbone:q} --task {params.task:q}"
        " --devices {resources.devices} --nodes {resources.nodes} --parts {resources.parts}"
        " --seed {wildcards.seed} --threads {threads} --log {log}"


rule pretraining_table:
    input:
        named=cards_of_named_inits,
        choice=cards_of_the_choice,
    output:
        table=report(
            "results/pretraining.csv",
            caption="../report/pretraining.rst",
            category="Training",
        ),
    log:
        "results/logs/pretraining_table.log",
    benchmark:
        "results/benchmarks/pretraining_table.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "Collect what the pretrainings took"
    script:
        "../scripts/pretraining_table.py"


rule finetuning_table:
    input:
        named=metrics_of_named_inits,
        choice=metrics_of_the_choice,
    output:
        table=report(
            "results/finetuning.csv",
            caption="../report/finetuning_table.rst",
            category="Training",
        ),
    log:
        "results/logs/finetuning_table.log",
    benchmark:
        "results/benchmarks/finetuning_table.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "Collect the finetuning errors"
    script:
        "../scripts/finetuning_table.py"


rule fold_table:
    input:
        finetuning="results/finetuning.csv",
    output:
        table=report(
            "results/folds.csv",
            caption="../report/fold_table.rst",
            category="Training",
        ),
    log:
        "results/logs/fold_table.log",
    benchmark:
        "results/benchmarks/fold_table.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        families=FOLDS,
    message:
        "Average the finetuning errors over folds"
    script:
        "../scripts/fold_table.py"
