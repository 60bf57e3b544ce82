"""How a model is trained: the config entries ``pretrain`` of a run and ``finetune`` of a task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from atomcsi.yaml_source import Entry

PositiveInt = Annotated[int, Field(gt=0)]
Factor = Annotated[float, Field(gt=0, le=1)]


class DepthFactors(Entry):
    """Learning rates by depth, as factors of that of the heads (paper, section 1: "Finetuning")."""

    embedding: Factor
    blocks: Annotated[list[Factor], Field(min_length=1)]


class TrainSettings(Entry):
    """How a model is trained; one model for pretraining and finetuning.

    A step takes ``batch_size`` structures, or fewer if these have more than ``max_atoms`` atoms or could have more
    than ``max_edges`` edges, in all processes together: on more GPUs, the same steps are taken with the same learning
    rate. Edges are counted by the datasets' graphs, as if every atom had all its neighbours. With ``bucket`` above 1,
    structures of about the same size come together: those of that many batches are sorted by size before they are
    distributed.

    The model is validated each ``val_interval`` of an epoch. The learning rate warms up, follows a cosine to
    ``final_factor`` at the end of ``cosine_epochs`` (by default the last one), and is multiplied by
    ``plateau_factor`` from then on whenever ``plateau_patience`` validations have passed without a better one.

    ``scalar_loss`` is that of energies or of the property in their place; ``force_loss`` is the length of an atom's
    force error (``norm``), or its components' absolute or squared error. ``forces`` come from a head of their own
    (``direct``) or are the energy's negative gradient.

    ``edge_dropout`` is the probability with which an edge of a structure's graph is left out of a step.

    With ``denoise_sigma`` no label is used: positions are off by Gaussian noise of that standard deviation (Angstrom)
    in each coordinate, and the force head learns to tell it.
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
