"""How a model is trained: the config entries ``pretrain`` of a run and ``finetune`` of a task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from atomcsi.yaml_source import Entry

PositiveInt = Annotated[int, Field(gt=0)]
Factor = Annotated[float, Field(gt=0, le=1)]


class DepthFactors(Entry):
    """Learning rates by depth, as factors of that of the heads (paper, section 1: "Finetuning").

    Attributes:
        embedding: Of what embeds.
        blocks: Of the interaction blocks in their order; interpolated for backbones that have more or fewer.
    """

    embedding: Factor
    blocks: Annotated[list[Factor], Field(min_length=1)]


class TrainSettings(Entry):
    """How a model is trained; one model for pretraining and finetuning.

    Batches are those of all processes together: on more GPUs, the same steps are taken with the same learning rate.
    The learning rate warms up, follows a cosine, and may then fall on plateaus of the validation loss.

    Attributes:
        structures: N, the structures of the training set.
        epochs: E, how often each of them is seen.
        batch_size: Structures of a step.
        max_atoms: Fewer of them if they have more atoms than this.
        max_edges: Fewer of them if they could have more edges than this: counted by the datasets' graphs, as if every
            atom had all its neighbours.
        bucket: Above 1, structures of about the same size come together: those of that many batches are sorted by size
            before they are distributed.
        learning_rate: AdamW's, after the warm-up.
        energy_weight: Weight of the loss of energies, or of the property in their place.
        force_weight: Weight of the loss of forces.
        scalar_loss: Of energies, or of the property in their place.
        force_loss: The length of an atom's force error (``norm``), or its components' absolute or squared error.
        forces: From a head of their own (``direct``), or the energy's negative ``gradient``.
        denoise_sigma: No label is used: positions are off by Gaussian noise of this standard deviation (Angstrom) in
            each coordinate, and the force head learns to tell it.
        warmup_steps: Steps until the full learning rate.
        warmup_factor: Factor of the learning rate in the first of them.
        final_factor: Factor of the learning rate where the cosine ends.
        cosine_epochs: Epochs until then; all of them by default.
        plateau_factor: What the learning rate is then multiplied by on a plateau.
        plateau_patience: Validations without a better one that make a plateau; none are looked for by default.
        depth_factors: Smaller learning rates by depth.
        betas: AdamW's.
        weight_decay: AdamW's.
        clip_norm: Largest norm of all gradients together.
        clip_value: Largest component of a gradient.
        ema_decay: Of the moving average of the weights, which is validated, kept and tested; 0 for none.
        precision: Of products of matrices.
        val_structures: Structures that are validated on, at most, of each dataset.
        val_interval: Share of an epoch after which the model is validated.
        edge_dropout: Probability with which an edge of a structure's graph is left out of a step.
    """

    structures: PositiveInt
    epochs: PositiveInt
    batch_size: PositiveInt
    max_atoms: PositiveInt | None = None
    max_edges: PositiveInt | None = None
    bucket: PositiveInt = 1
    learning_rate: Annotated[float, Field(gt=0)]
    energy_weight: Annotated[float, Field(ge=0)] = 1.0
    force_weight: Annotated[float, Field(ge=0)] = 10.0
    scalar_loss: Literal["l1", "mse", "cross-entropy"] = "l1"
    force_loss: Literal["norm", "l1", "mse"] = "norm"
    forces: Literal["direct", "gradient"] = "direct"
    denoise_sigma: Annotated[float, Field(gt=0)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_factor: Factor = 0.2
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.1
    cosine_epochs: PositiveInt | None = None
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = 0.8
    plateau_patience: Annotated[int, Field(ge=0)] | None = None
    depth_factors: DepthFactors | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    clip_value: Annotated[float, Field(gt=0)] | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    val_structures: PositiveInt = 2000
    val_interval: Annotated[float, Field(gt=0, le=1)] = 1.0
    edge_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError("takes either 'clip_norm' or 'clip_value'")
        if self.energy_weight == self.force_weight == 0:
            raise ValueError("energy_weight and force_weight are both 0: there is nothing to train on")
        if self.denoise_sigma is not None and (self.energy_weight > 0 or self.forces == "gradient"):
            raise ValueError("denoise_sigma needs energy_weight 0 and direct forces: only the force head tells noise")
        if self.cosine_epochs is not None and self.cosine_epochs > self.epochs:
            raise ValueError(f"cosine_epochs is {self.cosine_epochs}, but there are {self.epochs} epochs")
        if self.plateau_patience is not None and self.cosine_epochs is None:
            raise ValueError("plateau_patience needs cosine_epochs: the plateau begins where the cosine ends")
        return self

    @property
    def learns_forces(self) -> bool:
        """Whether the model then predicts forces."""
        return self.force_weight > 0 and self.denoise_sigma is None

    @property
    def budget(self) -> int:
        """C = E x N: structures seen in the whole training (paper, section 1)."""
        return self.epochs * self.structures
