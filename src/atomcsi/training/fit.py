"""One resumable fit: what pretraining and finetuning share."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from ase.data import chemical_symbols
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader

from atomcsi.catalogue import Graph
from atomcsi.config import BackboneSpec
from atomcsi.errors import AtomcsiError, InputError
from atomcsi.files import digest, resume_folder, versions
from atomcsi.models.base import Collate
from atomcsi.models.potential import Potential, build_backbone
from atomcsi.progress import Progress
from atomcsi.structure_lmdb import StructureLMDB
from atomcsi.training.checkpoints import BEST, AtomicCheckpoints, Checkpoints, newest_checkpoint, read_checkpoint
from atomcsi.training.data import LabelledStructures
from atomcsi.training.loading import Batches, LoadedBatch, loader
from atomcsi.training.model_files import WEIGHTS, load_backbone, read_card
from atomcsi.training.module import PotentialModule
from atomcsi.training.normalisation import Normaliser
from atomcsi.training.processes import Execution
from atomcsi.training.schedule import Schedule
from atomcsi.training.settings import TrainSettings

_VERSIONS = ("torch", "pytorch-lightning", "fairchem-core", "numpy")
#: Structures that the backbone's scale factors are fitted on.
_SCALE_STRUCTURES = 32
#: What Lightning calls the config's precisions.
_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@dataclass(frozen=True)
class Fitted:
    """A trained potential with the weights of its best validation.

    Attributes:
        potential: In evaluation mode.
        normaliser: Turns its predictions into eV.
        device: Where it is.
        collate: Turns structures into its batches.
        card: What was trained, on what, how, and what it took.
    """

    potential: Potential
    normaliser: Normaliser
    device: torch.device
    collate: Collate
    card: dict[str, Any]


def fit(
    train: StructureLMDB,
    val: StructureLMDB,
    folder: Path,
    *,
    backbone: BackboneSpec,
    settings: TrainSettings,
    target: str,
    init: Path | None,
    graphs: Sequence[Graph | None],
    seed: int,
    execution: Execution,
    title: str,
) -> Fitted:
    """Trains, or goes on with, a potential; its work is in ``folder/checkpoints`` until the outputs are written.

    Args:
        train: What is trained on.
        val: What picks the best weights.
        folder: Folder of the outputs.
        backbone: What is trained.
        settings: How.
        target: ``forces`` or ``energy``, or the property that takes the energy's place.
        init: Folder of a pretrained model; None to start from scratch.
        graphs: Graph of each dataset; the backbone's own where None.
        seed: Seed of the draw, the weights and the order.
        execution: Where it runs.
        title: What progress and messages call it.

    Raises:
        AtomcsiError: The data cannot be trained on, the loss is not finite, or a signal asked to stop.
    """
    if settings.precision == "float16" and not execution.on_gpu:
        raise AtomcsiError(f"{title}: float16 needs a GPU (set precision to bfloat16 or float32, or device to cuda)")
    plan = {
        "dataset": train.metadata["provenance"]["dataset"],
        "fingerprints": [train.metadata["fingerprint"], val.metadata["fingerprint"]],
        "backbone": backbone.model_dump(mode="json"),
        "graphs": [None if graph is None else graph.model_dump(mode="json") for graph in graphs],
        "settings": settings.model_dump(mode="json"),
        "target": target,
        "seed": seed,
        "pretrained": None if init is None else _pretrained(init),
        "versions": versions(*_VERSIONS),
    }
    work = resume_folder(folder / "checkpoints", plan)
    structures = LabelledStructures(train, target=target, limit=settings.structures, seed=seed)
    if len(structures) < settings.structures:
        problem = f"has {len(structures)} structures where {settings.structures} are to be trained on"
        raise InputError(train.path, problem, mend="lower `structures` or choose a larger split")
    validation = LabelledStructures(val, target=target, limit=settings.val_structures, seed=seed)
    # Of the whole split, as the paper's references are: a small draw may lack an element that others hold.
    whole = LabelledStructures(train, target=target)
    normaliser = Normaliser.fit(whole.batches(), whole.reference)

    torch.manual_seed(seed)
    potential = _potential(train, val, backbone, settings)
    if init is not None:
        load_backbone(potential.backbone, init)
    collate = potential.backbone.collate(graphs)
    last = newest_checkpoint(work)
    progressed = None if last is None else read_checkpoint(last)["training"]
    loaders = Loaders(
        structures, validation, settings, collate, seed, execution, start=progressed["step"] if progressed else 0
    )
    if init is None and last is None:
        potential.backbone.fit_scales(loaders.first(_SCALE_STRUCTURES))

    done = progressed["seen"] if progressed else 0
    progress = Progress(title, total=settings.budget, unit="structures", done=done)
    ends = loaders.batches().ends
    schedule = Schedule(settings, int(ends[(settings.cosine_epochs or settings.epochs) - 1]))
    module = PotentialModule(potential, normaliser, settings, schedule, progress, len(structures))
    trainer = _trainer(work, settings, execution, steps=int(ends[-1]))
    if progressed and progressed["step"] == ends[-1]:
        module.history = progressed["history"]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lightning's advice on workers, loggers and checkpoint folders
            trainer.fit(module, datamodule=loaders, ckpt_path=last, weights_only=True)
    potential.load_state_dict(read_checkpoint(work / BEST))
    best = min(module.history, key=lambda record: record["val_loss"])
    progress.finish(f"best val loss {best['val_loss']:.4g} after epoch {best['epoch']:.3g}")
    card = {
        **plan,
        "structures": len(structures),
        "budget": settings.budget,
        "atoms": int(structures.natoms.sum()),
        "parameters": sum(parameter.numel() for parameter in potential.parameters()),
        "linear_reference": {str(z): e for z, e in enumerate(normaliser.reference.tolist()) if e},
        "energy_scale": normaliser.energy_scale,
        "force_scale": normaliser.force_scale,
        "best_epoch": best["epoch"],
        "seconds": sum(record["seconds"] for record in module.history),
        "history": module.history,
    }
    device = trainer.strategy.root_device
    return Fitted(potential.to(device).eval(), normaliser, device, collate, card)


class Loaders(pl.LightningDataModule):
    """The batches of a training and of its validations, for whichever process asks.

    Args:
        structures: What is trained on.
        validation: What is validated on.
        settings: Sizes of batches.
        collate: What turns structures into batches.
        seed: Seed of the order.
        execution: How many workers read.
        start: Steps that an earlier run has done.
    """

    def __init__(
        self,
        structures: LabelledStructures,
        validation: LabelledStructures,
        settings: TrainSettings,
        collate: Collate,
        seed: int,
        execution: Execution,
        *,
        start: int,
    ) -> None:
        super().__init__()
        self._structures, self._validation, self._settings = structures, validation, settings
        self._collate, self._seed, self._workers, self._start = collate, seed, execution.workers, start

    def batches(self, *, start: int = 0, rank: int = 0, world: int = 1) -> Batches:
        """Returns the steps of the training; see :class:`~atomcsi.training.loading.Batches`."""
        return Batches(
            self._structures.natoms,
            self._settings,
            epochs=self._settings.epochs,
            seed=self._seed,
            start=start,
            rank=rank,
            world=world,
        )

    def first(self, structures: int) -> list[Any]:
        """Returns the training's first batches, of about as many structures."""
        batches = loader(self._structures, self.batches(), collate=self._collate)
        return [batch.atoms for batch in islice(batches, -(-structures // self._settings.batch_size))]

    def train_dataloader(self) -> DataLoader[LoadedBatch]:
        """This process's share of the steps."""
        batches = self.batches(start=self._start, rank=self.trainer.global_rank, world=self.trainer.world_size)
        return loader(self._structures, batches, collate=self._collate, workers=self._workers)

    def val_dataloader(self) -> DataLoader[LoadedBatch]:
        """This process's share of the validation structures."""
        batches = Batches(
            self._validation.natoms, self._settings, rank=self.trainer.global_rank, world=self.trainer.world_size
        )
        return loader(self._validation, batches, collate=self._collate, workers=self._workers)


def check_elements(train: StructureLMDB, other: StructureLMDB) -> None:
    """Refuses structures whose energies cannot be known: total energies of an element are thousands of eV."""
    if unseen := sorted(set(map(int, other.metadata["elements"])) - set(map(int, train.metadata["elements"]))):
        symbols = ", ".join(chemical_symbols[number] for number in unseen)
        raise InputError(
            other.path, f"holds {symbols}, which {train.path} does not", mend="split the dataset otherwise"
        )


def _pretrained(init: Path) -> dict[str, Any]:
    """What a pretrained model is known by."""
    card = read_card(init)
    weights = digest(init / WEIGHTS, "sha256")
    return {"dataset": card["dataset"], "seed": card["seed"], "budget": card["budget"], "sha256": weights}


def _potential(train: StructureLMDB, val: StructureLMDB, spec: BackboneSpec, settings: TrainSettings) -> Potential:
    """Builds a backbone with the heads that have a weight in the loss."""
    weights = {"energy": settings.energy_weight, "forces": settings.force_weight}
    heads = [head for head, weight in weights.items() if weight > 0]
    if "energy" in heads:
        check_elements(train, val)
    return Potential(build_backbone(spec.model_dump()), heads=heads)


def _trainer(work: Path, settings: TrainSettings, execution: Execution, *, steps: int) -> pl.Trainer:
    """Lightning's trainer, for which all epochs are one: epochs of ours end where the batches say."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    options = execution.trainer_options()
    return pl.Trainer(
        **options | {"plugins": [AtomicCheckpoints(), *options.get("plugins", [])]},
        precision=_PRECISIONS[settings.precision],
        max_epochs=1,
        # As often as the settings say, the last time after the last step or shortly before.
        val_check_interval=max(1, steps // round(settings.epochs / settings.val_interval)),
        check_val_every_n_epoch=None,
        gradient_clip_val=settings.clip_norm or settings.clip_value,
        gradient_clip_algorithm="norm" if settings.clip_norm else "value",
        callbacks=[
            Checkpoints(work, execution.checkpoint_minutes),
            EMAWeightAveraging(decay=settings.ema_decay),
        ],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=work,
    )
