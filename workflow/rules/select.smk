checkpoint select:
    input:
        distances=distances_that_select,
    output:
        selection="results/selection/{downstream}.json",
    log:
        "results/logs/select/{downstream}.log",
    benchmark:
        "results/benchmarks/select/{downstream}.tsv"
    priority: 10
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "Select the upstream dataset for {wildcards.downstream}"
    script:
        "../scripts/select_upstream.py"
