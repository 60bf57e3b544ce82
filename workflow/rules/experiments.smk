rule experiment:
    input:
        distances=distances_of_experiment,
        metrics=metrics_of_experiment,
        cards=cards_of_experiment,
        ranks=ranks_of_experiment,
        paper=numbers_of_the_paper,
    output:
        figure=report(
            "results/figures/{experiment}.svg",
            caption="../report/experiment.rst",
            category="Experiments",
        ),
        image="results/figures/{experiment}.png",
        table="results/figures/{experiment}.csv",
        record="results/figures/{experiment}.json",
    log:
        "results/logs/experiment/{experiment}.log",
    benchmark:
        "results/benchmarks/experiment/{experiment}.tsv"
    localrule: True
    conda:
        "../../environment.yml"
    params:
        scale=RUN.scale,
        experiment=experiment_entry,
        labels=labels_of_experiment,
        starts=starts_of_experiment,
        impl=f"experiment@{STEPS['experiment']}",
    message:
        "Draw the experiment {wildcards.experiment}"
    script:
        "../scripts/experiment.py"


rule paper:
    input:
        records_of_experiments([*EXPERIMENTS, *PROJECT.unfit]),
        "results/report.html",
