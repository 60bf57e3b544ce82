from snakemake.utils import min_version

min_version("9.27")

# A config named on the command line replaces these instead of being laid over them.
if not workflow.overwrite_configfiles:

    scale = config.get("scale", "demo")

    configfile: "config/paper.yaml" if scale == "full" else "config/demo.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/training_inputs.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/embed.smk"
include: "workflow/rules/csi.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/experiment_inputs.smk"
include: "workflow/rules/experiments.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/costs.smk"


rule all:
    default_target: True
    input:
        "results/report.html",
        tables_of_folds,


# To keep to a rate of submissions, Snakemake 9.27 looks for jobs once more a second after each time that it looked, for
# ever: after some hundred jobs it does nothing else. Nobody needs that rate, 100 jobs a second.
onstart:
    workflow.scheduler.job_rate_limiter = None
