rule csi_figure:
    input:
        csi="results/csi_matrix.csv",
        elements="results/csi_elements.csv",
        selections=selections_of_the_run,
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
        # These have a rule of their own: they need no training.
        figure=one_of(CSI_FIGURES),
    localrule: True
    conda:
        "../../environment.yml"
    message:
        "Draw {wildcards.figure}"
    script:
        "../scripts/figure.py"


rule figure:
    input:
        csi="results/csi_matrix.csv",
        elements="results/csi_elements.csv",
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
        figure=one_of(TRAINING_FIGURES),
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
        mixtures="results/mixtures.csv",
        elements="results/csi_elements.csv",
        embeddings=embeddings_of_the_run,
        figures=expand(
            "results/figures/{figure}.svg", figure=[*CSI_FIGURES, *TRAINING_FIGURES]
        ),
        experiments=records_of_experiments(PROJECT.reported),
        # What all trainings took: those of the run itself, and those of experiments.
        named_metrics=metrics_of_named_inits,
        choice_metrics=metrics_of_the_choice,
        experiment_metrics=metrics_of_reported_experiments,
        experiment_cards=cards_of_reported_experiments,
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
        more_experiments=[
            EXPERIMENTS[name].model_dump(include={"title", "question"})
            | {"name": name}
            for name in EXPERIMENTS
            if name not in PROJECT.reported
        ],
    message:
        "Write the report"
    script:
        "../scripts/html_report.py"
