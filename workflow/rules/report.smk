rule csi_figure:
    input:
        csi="results/csi_matrix.csv",
        selections=selections_of_the_run,
    output:
        figure=report(
            "results/figures/csi-matrix.svg",
            caption="../report/csi_figure.rst",
            category="Figures",
        ),
        table="results/figures/csi-matrix.csv",
    log:
        "results/logs/figure/csi-matrix.log",
    benchmark:
        "results/benchmarks/figure/csi-matrix.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "Draw csi-matrix"
    script:
        "../scripts/figure.py"


rule figure:
    input:
        csi="results/csi_matrix.csv",
        selections=selections_of_the_run,
        finetuning="results/finetuning.csv",
        pretraining="results/pretraining.csv",
        named=cards_of_named_inits,
        choice=cards_of_the_choice,
    output:
        figure=report(
            "results/figures/{figure}.svg",
            caption="../report/figure.rst",
            category="Figures",
        ),
        table="results/figures/{figure}.csv",
    log:
        "results/logs/figure/{figure}.log",
    benchmark:
        "results/benchmarks/figure/{figure}.tsv"
    wildcard_constraints:
        # The CSI matrix has a rule of its own: it needs no training.
        figure=one_of(set(FIGURES) - {"csi-matrix"}),
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "Draw {wildcards.figure}"
    script:
        "../scripts/figure.py"


rule html_report:
    input:
        csi="results/csi_matrix.csv",
        selections=selections_of_the_run,
        finetuning="results/finetuning.csv",
        pretraining="results/pretraining.csv",
        named=cards_of_named_inits,
        choice=cards_of_the_choice,
        embeddings=expand(
            "results/embeddings/{extractor}/{dataset}.h5",
            extractor=RUN.embedding.extractor,
            dataset=PROJECT.used_datasets,
        ),
        figures=expand("results/figures/{figure}.svg", figure=FIGURES),
    output:
        page=report(
            "results/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        "results/logs/html_report.log",
    benchmark:
        "results/benchmarks/html_report.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        entries=PROJECT.entries(),
    message:
        "Write the report"
    script:
        "../scripts/html_report.py"
