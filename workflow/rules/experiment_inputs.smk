def measurement_file(found):
    return f"results/csi/{found.comparison}/{found.aggregation}/{found.distance}/{found.downstream}.json"


def finetuning_folder(cell):
    return f"results/finetune/{cell.backbone}/{cell.start.name}__{cell.task}/seed{cell.seed}"


def experiment_of(name):
    # Said here, where it is asked for, and not before: other experiments do without what it needs.
    if name in PROJECT.unfit:
        raise WorkflowError(str(PROJECT.unfit[name]))
    return EXPERIMENTS[name]


def measurements_of(wildcards):
    experiment = experiment_of(wildcards.experiment)
    return PROJECT.measurements(experiment) if experiment.measures else []


def cells_of(wildcards):
    return PROJECT.cells(experiment_of(wildcards.experiment))


def card_of(cell):
    if cell.start.name in PRETRAININGS:
        return f"results/pretrain/{cell.backbone}/{cell.start.name}/seed{cell.seed}/model.json"


def distances_of_experiment(wildcards):
    return [measurement_file(found) for found in measurements_of(wildcards)]


def labels_of_experiment(wildcards):
    return [found.label for found in measurements_of(wildcards)]


def metrics_of_experiment(wildcards):
    return [f"{finetuning_folder(cell)}/metrics.json" for cell in cells_of(wildcards)]


def cards_of_experiment(wildcards):
    cards = dict.fromkeys(map(card_of, cells_of(wildcards)))
    return [card for card in cards if card is not None]


def metrics_of_reported_experiments(wildcards):
    cells = [
        cell for name in PROJECT.reported for cell in PROJECT.cells(EXPERIMENTS[name])
    ]
    return list(
        dict.fromkeys(f"{finetuning_folder(cell)}/metrics.json" for cell in cells)
    )


def cards_of_reported_experiments(wildcards):
    cells = [
        cell for name in PROJECT.reported for cell in PROJECT.cells(EXPERIMENTS[name])
    ]
    return [card for card in dict.fromkeys(map(card_of, cells)) if card is not None]


def starts_of_experiment(wildcards):
    return [
        {
            "backbone": cell.backbone,
            "init": cell.start.init,
            "structures": cell.start.structures,
            "epochs": cell.start.epochs,
            "family": FAMILIES.get(PROJECT.tasks[cell.task].dataset),
            "card": card_of(cell),
        }
        for cell in cells_of(wildcards)
    ]


def ranks_of_experiment(wildcards):
    experiment = experiment_of(wildcards.experiment)
    if experiment.plot != "effective-rank":
        return []
    return effective_ranks([*RUN.upstream, *PROJECT.downstream_of(experiment)])


def numbers_of_the_paper(wildcards):
    # Those of stand-ins are not to be compared with it.
    names = ("finetuning", "unique_classes", "csi_order") if RUN.scale == "full" else ()
    return [in_repository(f"resources/paper/{name}.csv") for name in names]


def experiment_entry(wildcards):
    # Where it stands in a report changes nothing in its figure.
    return experiment_of(wildcards.experiment).model_dump(
        mode="json", exclude={"place"}
    )


def records_of_experiments(names):
    return expand("results/figures/{experiment}.json", experiment=names)
