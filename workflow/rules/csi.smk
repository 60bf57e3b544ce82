# All upstreams of one downstream dataset at once: how sure a choice is depends on errors that they have in common.
rule csi:
    input:
        upstream=embeddings_of_upstreams,
        downstream=embedding_of_downstream,
    output:
        distances="results/csi/{comparison}/{aggregation}/{distance}/{downstream}.json",
    log:
        "results/logs/csi/{comparison}/{aggregation}/{distance}/{downstream}.log",
    benchmark:
        "results/benchmarks/csi/{comparison}/{aggregation}/{distance}/{downstream}.tsv"
    priority: 10
    group:
        "csi" if SMALL else None
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=megabytes(2000, per_megabyte=1),
        runtime=lambda wildcards, attempt: minutes(5 if SMALL else 60, attempt),
    params:
        impl=lambda wildcards: [
            implementation(DISTANCES, wildcards.distance),
            f"measure@{STEPS['measure']}",
        ],
    message:
        "Measure the {wildcards.distance} distance of all upstreams to {wildcards.downstream}"
    script:
        "../scripts/csi.py"


rule csi_matrix:
    input:
        distances=distances_of_the_run,
    output:
        table=report(
            "results/csi_matrix.csv",
            caption="../report/csi_matrix.rst",
            category="Selection",
        ),
        elements=report(
            "results/csi_elements.csv",
            caption="../report/csi_elements.rst",
            category="Selection",
        ),
    log:
        "results/logs/csi_matrix.log",
    benchmark:
        "results/benchmarks/csi_matrix.tsv"
    priority: 10
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "Collect the CSI matrix"
    script:
        "../scripts/csi_matrix.py"


rule mix:
    input:
        upstream=embeddings_of_upstreams,
        downstream=embedding_of_downstream,
    output:
        mixtures="results/mixtures/{comparison}/{downstream}.json",
    log:
        "results/logs/mix/{comparison}/{downstream}.log",
    benchmark:
        "results/benchmarks/mix/{comparison}/{downstream}.tsv"
    priority: 10
    group:
        "csi" if SMALL else None
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=megabytes(3000, per_megabyte=1),
        runtime=lambda wildcards, attempt: minutes(5 if SMALL else 60, attempt),
    params:
        structures=RUN.pretrain.structures,
        impl=[implementation(DISTANCES, "frechet"), f"mix@{STEPS['mix']}"],
    message:
        "Find the mix of upstreams of least CSI to {wildcards.downstream}"
    script:
        "../scripts/mix.py"


rule mixture_table:
    input:
        mixtures=mixtures_of_the_run,
    output:
        table=report(
            "results/mixtures.csv",
            caption="../report/mixtures.rst",
            category="Selection",
        ),
    log:
        "results/logs/mixture_table.log",
    benchmark:
        "results/benchmarks/mixture_table.tsv"
    priority: 10
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "Collect the mixes"
    script:
        "../scripts/mixture_table.py"


rule effective_rank:
    input:
        embedding="results/embeddings/{extractor}/{dataset}.h5",
    output:
        table="results/effective_rank/{extractor}/{dataset}.csv",
    log:
        "results/logs/effective_rank/{extractor}/{dataset}.log",
    benchmark:
        "results/benchmarks/effective_rank/{extractor}/{dataset}.tsv"
    group:
        "csi" if SMALL else None
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=megabytes(3000, per_megabyte=1),
        runtime=lambda wildcards, attempt: minutes(5 if SMALL else 120, attempt),
    params:
        # The paper's; a demo embeds some hundred structures.
        sizes=[25, 50, 100, 200] if SMALL else [100, 1000, 5000, 10000],
        impl=f"effective_rank@{STEPS['effective_rank']}",
    message:
        "Measure the effective rank of {wildcards.dataset}'s features, of atoms and of structures"
    script:
        "../scripts/effective_rank.py"


rule effective_rank_table:
    input:
        tables=effective_ranks_of_the_run,
    output:
        table=report(
            "results/effective_rank.csv",
            caption="../report/effective_rank.rst",
            category="Selection",
        ),
    log:
        "results/logs/effective_rank_table.log",
    benchmark:
        "results/benchmarks/effective_rank_table.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "Collect the effective ranks"
    script:
        "../scripts/effective_rank_table.py"
