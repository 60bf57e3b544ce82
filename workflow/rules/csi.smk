rule csi:
    input:
        upstream="results/embeddings/{extractor}/{upstream}.h5",
        downstream="results/embeddings/{extractor}/{downstream}.h5",
    output:
        distance="results/csi/{extractor}/{distance}/{upstream}__{downstream}.json",
    log:
        "results/logs/csi/{extractor}/{distance}/{upstream}__{downstream}.log",
    benchmark:
        "results/benchmarks/csi/{extractor}/{distance}/{upstream}__{downstream}.tsv"
    priority: 10
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 2000 * attempt,
        runtime=lambda wildcards, attempt: 30 * attempt,
    params:
        impl=lambda wildcards: implementation(DISTANCES, wildcards.distance),
    message:
        "Measure the {wildcards.distance} distance of {wildcards.upstream} to {wildcards.downstream}"
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
