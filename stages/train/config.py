"""The hashing network, trained by UHSCM, DSCH or both (`method`), on a GPU where there is one.

Reads data/features.h5, data/similarity.parquet and data/components.h5, writes models/hashnet and the training curves
under reports/train. A killed training goes on at its last checkpoint.
"""

from typing import Literal

from pydantic import Field

from stages.params import Bits, Device, Frozen, Method, Seed


class Uhscm(Frozen):
    """Section ``train.uhscm``: weights and constants of UHSCM's loss."""

    alpha: float = Field(ge=0)  # weight of the modified contrastive loss
    beta: float = Field(ge=0)  # weight of the quantization loss
    gamma: float = Field(gt=0)  # temperature of the contrastive loss
    positive: float = Field(ge=-1, le=1)  # similarity from which a pair counts as positive (the paper's lambda)


class Dsch(Frozen):
    """Section ``train.dsch``: constants of DSCH's loss."""

    temperature: float = Field(gt=0)  # of all three terms
    weight: float = Field(ge=0)  # weight of the fine and of the coarse term
    round: int = Field(gt=0)  # epochs between two E-steps


class Fused(Frozen):
    """Section ``train.fused``: what differs when both signals are trained on; the rest is as in the two above."""

    temper: float = Field(gt=0, le=1)  # exponent of the concept distributions; below 1, lesser concepts count
    dissimilar: float = Field(ge=-1, lt=1)  # cosine that codes without a concept in common are drawn to
    alpha: float = Field(ge=0)  # weight of the modified contrastive loss
    weight: float = Field(ge=0)  # weight of the fine and of the coarse term


class Train(Frozen):
    """Section ``train``."""

    hidden: int = Field(gt=0)  # hidden units of the head
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=2)  # batches of two could leave a single image, which has no variance
    optimizer: Literal["sgd", "adamw"]
    lr: float = Field(gt=0)  # at the start; falls to 0 on a cosine
    weight_decay: float = Field(ge=0)
    checkpoint: int = Field(gt=0)  # epochs between two checkpoints
    uhscm: Uhscm
    dsch: Dsch
    fused: Fused


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    method: Method
    bits: Bits
    seed: Seed
    device: Device
    train: Train
