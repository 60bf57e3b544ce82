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
    localrule: True
    conda:
        "atomcsi"
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
        "atomcsi"
    params:
        entries=PROJECT.entries(),
    message:
        "Write the report"
    script:
        "../scripts/html_report.py"
