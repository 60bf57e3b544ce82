"""The ``atomcsi`` command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from atomcsi import __version__
from atomcsi.errors import InputError
from atomcsi.jobs import job, keep_freed_memory, set_threads
from atomcsi.registry import DISTANCES
from atomcsi.sampling import Aggregation, Method, Resample

if TYPE_CHECKING:
    from atomcsi.catalogue import Graph
    from atomcsi.training.processes import Execution

_COMPARE = """Prints which candidate dataset is nearest to yours by CSI, with 95 % intervals and the probability that
it is the nearest. A dataset is a file or folder: extended XYZ (.extxyz, .xyz; also .gz, .xz, .bz2), ASE's databases and
trajectories (.db, .traj), .aselmdb, .lmdb (ours, fairchem's or JMP's), .cif, .pdb, POSCAR, or an embedding file of ours
(.h5). Structures and embeddings are cached by their content."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; errors that the user can mend end in one message and exit code 1."""
    parser = _parser()
    options = parser.parse_args(arguments)
    with job(getattr(options, "log", None)):
        options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atomcsi", description="Choose the pretraining data of a model of atoms before paying for it."
    )
    parser.add_argument("--version", action="version", version=f"atomcsi {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("check", help="check a run config and the catalogue beside it")
    command.add_argument("config", type=Path, help="run config, such as config/demo.yaml")
    command.set_defaults(run=_check)

    command = commands.add_parser("convert", help="convert a dataset's raw files to one LMDB file per split")
    command.add_argument("--name", required=True, help="the dataset's id")
    command.add_argument("--dataset", type=_json, required=True, help="what its catalogue entry says, as JSON")
    command.add_argument("--raw", type=Path, required=True, help="folder of the raw files")
    command.add_argument("--out", type=Path, required=True, help="folder for train.lmdb, val.lmdb and test.lmdb")
    command.add_argument("--threads", type=int, default=1, help="worker processes (default: %(default)s)")
    command.add_argument("--log", type=Path, help="log file; also on the terminal")
    command.set_defaults(run=_convert)

    command = commands.add_parser(
        "compare",
        help="find which candidate to pretrain on is nearest to a dataset of your own",
        description=_COMPARE,
    )
    _add_compare_options(command)
    command.set_defaults(run=_compare)

    command = commands.add_parser("predict", help="predict energies and forces, or a property, with a trained model")
    command.add_argument("model", type=Path, metavar="MODEL", help="folder of the model")
    command.add_argument("structures", type=Path, metavar="STRUCTURES", help="file or folder, as for compare")
    command.add_argument("--out", type=Path, required=True, metavar="OUT.extxyz", help="file to write")
    command.add_argument("--dataset", metavar="ID", help="whose heads are asked, for a model of a mix")
    command.add_argument("--batch-size", type=int, default=32, help="structures at once (default: %(default)s)")
    command.add_argument("--device", default="auto", help="cpu, cuda, or auto (default: %(default)s)")
    command.set_defaults(run=_predict)

    command = commands.add_parser("card", help="write the README.md of a trained model anew, with what CSI says")
    command.add_argument("model", type=Path, metavar="MODEL", help="folder of the model")
    command.add_argument("--csi", type=Path, metavar="CSV", help="csi_matrix.csv of a run with the model's data")
    command.set_defaults(run=_card)

    command = commands.add_parser("effective-rank", help="in how many directions the features of embedding files vary")
    command.add_argument("files", type=Path, nargs="+", metavar="FILE", help="HDF5 file of embeddings")
    command.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    command.set_defaults(run=_effective_rank)

    command = commands.add_parser("info", help="print what a file of ours holds (.lmdb, .h5, .json)")
    command.add_argument("file", type=Path)
    command.set_defaults(run=_info)

    command = commands.add_parser("lmdb", help="look into, check and export files of structures")
    _add_lmdb_commands(command.add_subparsers(title="commands", required=True, metavar="COMMAND"))

    command = commands.add_parser("pretrain", help="pretrain a backbone on one dataset, or on a mix of several")
    _add_training_options(command, datasets="+")
    command.add_argument("--mix", type=_json, help="the mix's name and entry as JSON, for several datasets")
    command.add_argument("--mixtures", type=Path, help="what was found of mixes, for a mix by CSI")
    command.add_argument("--difficulty", type=Path, help="how hard the structures are, for a mix by difficulty")
    command.add_argument("--settings", type=_json, required=True, help="training settings as JSON")
    command.set_defaults(run=_pretrain)

    command = commands.add_parser("finetune", help="finetune a backbone on a task and test it")
    _add_training_options(command, datasets=1)
    command.add_argument("--test", type=Path, required=True, help="LMDB file to test on")
    command.add_argument("--name", required=True, help="the task's id")
    command.add_argument("--task", type=_json, required=True, help="the task's catalogue entry as JSON")
    start = "folder of a pretrained model, or a published checkpoint; without it, from scratch"
    command.add_argument("--init", type=Path, help=start)
    command.add_argument("--init-name", metavar="ID", help="what the start is called; needed for a checkpoint")
    command.set_defaults(run=_finetune)
    return parser


def _add_compare_options(command: argparse.ArgumentParser) -> None:
    default = "(default: %(default)s)"
    add = command.add_argument
    add("mine", type=Path, metavar="MINE", help="the dataset that you want a model for")
    add("candidates", type=Path, nargs="+", metavar="CANDIDATE", help="datasets to pretrain on")
    add("--names", nargs="+", metavar="NAME", help="what to call them, yours first; else the names of the files")
    extractors = "sevennet-0, chgnet, equiformer-v2, gemnet-oc or composition"
    add("--extractor", default="sevennet-0", metavar="ID", help=f"{extractors} {default}")
    add("--checkpoint", type=Path, metavar="FILE", help="weights, for equiformer-v2 and gemnet-oc")
    add("--n", type=int, default=10_000, help=f"structures of each dataset that are embedded at most {default}")
    add("--sampling", choices=get_args(Method), default="balanced", help=f"how candidates are drawn from {default}")
    add("--distance", choices=sorted(DISTANCES), default="frechet", help=f"frechet is CSI {default}")
    add("--aggregation", choices=get_args(Aggregation), default="flat", help=f"flat: atoms; else structures {default}")
    resampled = "what error bars take as independent: structures, or all of one formula"
    add("--resample", choices=get_args(Resample), default="structures", help=f"{resampled} {default}")
    add("--seed", type=int, default=0, help=f"seed of sampling and resampling {default}")
    add("--device", default="auto", help=f"cpu, cuda, or auto {default}")
    add("--processes", type=int, help="processes that embed; else as many as pay")
    add("--cache", type=Path, metavar="FOLDER", help="cache; else $ATOMCSI_CACHE, or the system's cache folder")
    add("--out", type=Path, metavar="PAGE.html", help="page to write, with .csv and .json beside it")
    add("--log", type=Path, help="log file; also on the terminal")


def _add_lmdb_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("info", help="print what a file of structures holds")
    command.add_argument("file", type=Path)
    command.add_argument("--json", action="store_true", help="as JSON instead of a table")
    command.set_defaults(run=_lmdb_info)

    command = commands.add_parser("verify", help="check every structure of a file and its fingerprint")
    command.add_argument("file", type=Path)
    command.set_defaults(run=_lmdb_verify)

    command = commands.add_parser("export", help="write a file of structures as .aselmdb, for fairchem and ASE")
    command.add_argument("file", type=Path)
    command.add_argument("out", type=Path, metavar="OUT.aselmdb")
    command.set_defaults(run=_lmdb_export)


def _add_training_options(command: argparse.ArgumentParser, datasets: int | str) -> None:
    files = {"type": Path, "required": True, "nargs": datasets, "metavar": "LMDB"}
    command.add_argument("--train", **files, help="file to train on, one a dataset")
    command.add_argument("--val", **files, help="file that picks the best weights, one a dataset")
    command.add_argument("--out", type=Path, required=True, help="folder for the model")
    command.add_argument("--backbone", type=_json, required=True, help="the backbone's catalogue entry as JSON")
    command.add_argument("--seed", type=int, required=True)
    graphs = "the datasets' graphs as a JSON list, null for the backbone's own (default: the backbone's own)"
    command.add_argument("--graphs", type=_json, help=graphs)
    default = "(default: %(default)s)"
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument(
        "--devices", type=_positive, default=1, help=f"GPUs, or processes on the CPU, of a node {default}"
    )
    command.add_argument("--nodes", type=_positive, default=1, help=f"nodes {default}")
    parts = "parts that a device computes its share of a step in, to need less memory"
    command.add_argument("--parts", type=_positive, default=1, help=f"{parts} {default}")
    workers = "processes that read ahead, for a device; else the threads that a GPU leaves over, and none without one"
    command.add_argument("--workers", type=int, help=workers)
    minutes = "minutes between checkpoints; 0 for one each step"
    command.add_argument("--checkpoint-minutes", type=float, default=10.0, help=f"{minutes} {default}")
    command.add_argument("--threads", type=int, default=1, help=f"processor threads {default}")
    command.add_argument("--log", type=Path, help="log file; also on the terminal")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _json(text: str) -> Any:
    return json.loads(text)


# Heavy imports happen in the command that needs them: --help and check answer at once.


def _check(options: argparse.Namespace) -> None:
    from atomcsi.project import load_project, missing_checkpoint

    project = load_project(path=options.config)
    runs = len(project.run.inits) * len(project.run.tasks) * len(project.run.seeds)
    print(f"{options.config}: good; {len(project.run.upstream)} upstream datasets, {runs} finetunings")  # noqa: T201
    if problem := missing_checkpoint(project, options.config):
        print(f"still to do: {problem}")  # noqa: T201


def _convert(options: argparse.Namespace) -> None:
    from atomcsi.catalogue import Conversion
    from atomcsi.config import parse_entry
    from atomcsi.convert import convert

    dataset = parse_entry(Conversion, options.dataset, "--dataset")
    convert(dataset, options.name, options.raw, options.out, threads=options.threads)


def _compare(options: argparse.Namespace) -> None:
    set_threads(1)  # what pays are processes
    keep_freed_memory()
    from atomcsi.comparison import compare

    if options.out is not None and options.out.suffix != ".html":
        raise InputError(options.out, "is no name of a page", mend="let it end in .html")
    found = compare(
        options.mine,
        *options.candidates,
        names=options.names,
        extractor=options.extractor,
        checkpoint=options.checkpoint,
        structures=options.n,
        sampling=options.sampling,
        distance=options.distance,
        aggregation=options.aggregation,
        resample=options.resample,
        seed=options.seed,
        device=options.device,
        processes=options.processes,
        cache=options.cache,
    )
    print(found)  # noqa: T201
    if options.out is not None:
        print("written: " + ", ".join(map(str, found.write(options.out))))  # noqa: T201


def _predict(options: argparse.Namespace) -> None:
    from atomcsi.prediction import predict

    count = predict(
        options.model,
        options.structures,
        options.out,
        dataset=options.dataset,
        batch_size=options.batch_size,
        device=options.device,
    )
    print(f"{options.out}: {count} structures")  # noqa: T201


def _card(options: argparse.Namespace) -> None:
    from atomcsi.report.model_card import write_model_card

    print(f"written: {write_model_card(options.model, options.csi)}")  # noqa: T201


def _effective_rank(options: argparse.Namespace) -> None:
    import pandas as pd

    from atomcsi.effective_rank import effective_ranks

    table = pd.concat([effective_ranks(path, seed=options.seed) for path in options.files])
    groups = table.groupby(["dataset", "structures", "aggregation"], sort=False)["effective_rank"]
    print(groups.agg(["mean", "std"]).unstack("aggregation").to_string(float_format="%.2f"))  # noqa: T201


def _info(options: argparse.Namespace) -> None:
    suffix = options.file.suffix
    if suffix == ".lmdb":
        from atomcsi.inspection import describe

        content = describe(options.file)
    elif suffix == ".h5":
        from atomcsi.hdf5_file import open_checked

        with open_checked(options.file, None, what="file", mend="make it with the pipeline") as file:
            content = {"schema": file.attrs["schema"], **json.loads(file.attrs["provenance"])}
    elif suffix == ".json":
        from atomcsi.files import read_json

        content = read_json(options.file, None)
    else:
        raise InputError(options.file, f"has the unknown ending '{suffix}'", mend="known: .lmdb, .h5, .json")
    print(json.dumps(content, indent=2))  # noqa: T201


def _lmdb_info(options: argparse.Namespace) -> None:
    from atomcsi.inspection import describe, table

    content = describe(options.file)
    print(json.dumps(content, indent=2) if options.json else table(content))  # noqa: T201


def _lmdb_verify(options: argparse.Namespace) -> None:
    from atomcsi.inspection import verify

    print(f"{options.file}: good; {verify(options.file)} structures")  # noqa: T201


def _lmdb_export(options: argparse.Namespace) -> None:
    from atomcsi.export import export_aselmdb

    print(f"{options.out}: {export_aselmdb(options.file, options.out)} structures")  # noqa: T201


def _pretrain(options: argparse.Namespace) -> None:
    _share_threads(options)
    from atomcsi.config import BackboneSpec, TrainSettings, parse_entry
    from atomcsi.mixes import NamedMix
    from atomcsi.structure_lmdb import StructureLMDB
    from atomcsi.training.train import pretrain

    pretrain(
        [StructureLMDB(path) for path in options.train],
        [StructureLMDB(path) for path in options.val],
        options.out,
        backbone=parse_entry(BackboneSpec, options.backbone, "--backbone"),
        settings=parse_entry(TrainSettings, options.settings, "--settings"),
        seed=options.seed,
        mix=parse_entry(NamedMix, options.mix, "--mix") if options.mix else None,
        mixtures=options.mixtures,
        difficulty=options.difficulty,
        graphs=_graphs(options),
        execution=_execution(options),
    )


def _finetune(options: argparse.Namespace) -> None:
    _share_threads(options)
    from atomcsi.config import BackboneSpec, Task, parse_entry
    from atomcsi.structure_lmdb import StructureLMDB
    from atomcsi.training.train import finetune

    if options.init is not None and not options.init.is_dir() and options.init_name is None:
        raise InputError(options.init, "is no folder of a model", mend="name a checkpoint's start with --init-name")
    splits = {"train": options.train[0], "val": options.val[0], "test": options.test}
    finetune(
        {split: StructureLMDB(path) for split, path in splits.items()},
        options.out,
        task=parse_entry(Task, options.task, "--task"),
        task_name=options.name,
        init=options.init,
        init_name=options.init_name,
        backbone=parse_entry(BackboneSpec, options.backbone, "--backbone"),
        seed=options.seed,
        graph=_graphs(options)[0],
        execution=_execution(options),
    )


def _share_threads(options: argparse.Namespace) -> None:
    """Limits each process of a training to its share of the threads that a node grants."""
    set_threads(max(options.threads // options.devices, 1))


def _graphs(options: argparse.Namespace) -> list[Graph | None]:
    from atomcsi.catalogue import Graph
    from atomcsi.config import parse_entry

    entries = [None] * len(options.train) if options.graphs is None else options.graphs
    return [None if entry is None else parse_entry(Graph, entry, "--graphs") for entry in entries]


def _execution(options: argparse.Namespace) -> Execution:
    from atomcsi.training.processes import Execution

    names = ("device", "devices", "nodes", "parts", "checkpoint_minutes")
    execution = Execution(**{name: getattr(options, name) for name in names})
    workers = options.workers
    if workers is None:
        workers = max(options.threads // options.devices - 1, 0) if execution.on_gpu else 0
    return replace(execution, workers=workers)


if __name__ == "__main__":
    main()
