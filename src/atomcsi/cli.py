"""The ``atomcsi`` command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from atomcsi import __version__
from atomcsi.errors import InputError
from atomcsi.jobs import job, set_threads


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

    command = commands.add_parser("csi", help="measure the distance between two embedding files")
    command.add_argument("upstream", type=Path, help="HDF5 file of embeddings")
    command.add_argument("downstream", type=Path, help="HDF5 file of embeddings")
    command.add_argument("--distance", default="frechet", help="default: %(default)s, the paper's CSI")
    command.set_defaults(run=_csi)

    command = commands.add_parser("info", help="print what a file of ours holds (.lmdb, .h5, .json)")
    command.add_argument("file", type=Path)
    command.set_defaults(run=_info)

    command = commands.add_parser("lmdb", help="look into, check and export files of structures")
    _add_lmdb_commands(command.add_subparsers(title="commands", required=True, metavar="COMMAND"))

    command = commands.add_parser("pretrain", help="pretrain a backbone on one dataset")
    _add_training_options(command)
    command.add_argument("--settings", type=_json, required=True, help="training settings as JSON")
    command.set_defaults(run=_pretrain)

    command = commands.add_parser("finetune", help="finetune a backbone on a task and test it")
    _add_training_options(command)
    command.add_argument("--test", type=Path, required=True, help="LMDB file to test on")
    command.add_argument("--name", required=True, help="the task's id")
    command.add_argument("--task", type=_json, required=True, help="the task's catalogue entry as JSON")
    command.add_argument("--init", type=Path, help="folder of a pretrained model; without it, from scratch")
    command.set_defaults(run=_finetune)
    return parser


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


def _add_training_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--train", type=Path, required=True, help="LMDB file to train on")
    command.add_argument("--val", type=Path, required=True, help="LMDB file that picks the best epoch")
    command.add_argument("--out", type=Path, required=True, help="folder for the model")
    command.add_argument("--backbone", type=_json, required=True, help="the backbone's catalogue entry as JSON")
    command.add_argument("--seed", type=int, required=True)
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    command.add_argument("--log", type=Path, help="log file; also on the terminal")


def _json(text: str) -> dict[str, object]:
    return json.loads(text)


# Heavy imports happen in the command that needs them: --help and check answer at once.


def _check(options: argparse.Namespace) -> None:
    from atomcsi.config import load_project, missing_checkpoint

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


def _csi(options: argparse.Namespace) -> None:
    from atomcsi.selection import compare

    found = compare(options.upstream, options.downstream, distance=options.distance)
    print("{value:.6g} = {mean_term:.6g} (means) + {covariance_term:.6g} (covariances)".format(**found))  # noqa: T201


def _info(options: argparse.Namespace) -> None:
    suffix = options.file.suffix
    if suffix == ".lmdb":
        from atomcsi.inspection import describe

        content = describe(options.file)
    elif suffix == ".h5":
        from atomcsi.embeddings import Embedding

        content = Embedding(options.file).provenance
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
    set_threads(options.threads)
    from atomcsi.config import BackboneSpec, TrainSettings, parse_entry
    from atomcsi.structure_lmdb import StructureLMDB
    from atomcsi.training.train import pretrain

    pretrain(
        StructureLMDB(options.train),
        StructureLMDB(options.val),
        options.out,
        backbone=parse_entry(BackboneSpec, options.backbone, "--backbone"),
        settings=parse_entry(TrainSettings, options.settings, "--settings"),
        seed=options.seed,
        device=options.device,
    )


def _finetune(options: argparse.Namespace) -> None:
    set_threads(options.threads)
    from atomcsi.config import BackboneSpec, Task, parse_entry
    from atomcsi.structure_lmdb import StructureLMDB
    from atomcsi.training.train import finetune

    finetune(
        {split: StructureLMDB(getattr(options, split)) for split in ("train", "val", "test")},
        options.out,
        task=parse_entry(Task, options.task, "--task"),
        task_name=options.name,
        init=options.init,
        backbone=parse_entry(BackboneSpec, options.backbone, "--backbone"),
        seed=options.seed,
        device=options.device,
    )


if __name__ == "__main__":
    main()
