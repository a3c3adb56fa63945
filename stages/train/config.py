"""The hashing network, trained by `method` (UHSCM, DSCH, both, or a deep neighbour), on a GPU where there is one.

Reads data/features.h5, data/images and models/backbone, data/similarity.parquet, data/components.h5 and
data/concepts.parquet, writes models/hashnet and the training curves under reports/train. train.network: head trains on
the features, backbone end to end on the images. A killed training goes on at its last checkpoint. torchrun starts it
on several GPUs or machines.
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
    instance: float = Field(ge=0)  # weight of the instance term
    fine: float = Field(ge=0)  # weight of the term of the fine components
    coarse: float = Field(ge=0)  # weight of the term of the coarse components
    round: int = Field(gt=0)  # epochs between two E-steps
    warmup: int = Field(gt=0)  # rounds on the components of the features, before the first E-step on codes


class Fused(Frozen):
    """Section ``train.fused``: which images are relevant to each other."""

    presence: float = Field(gt=0)  # share of a concept, as a multiple of the mean share, from which an image shows it
    components: int = Field(gt=0)  # where there are no concepts: clusters of the features, of 10 images at least


class GreedyHash(Frozen):
    """Section ``train.greedyhash``: constants of GreedyHash's unsupervised loss."""

    penalty: float = Field(ge=0)  # weight of the mean |z - sign(z)|^3


class BiHalf(Frozen):
    """Section ``train.bihalf``: constants of Bi-half Net's layer."""

    gamma: float = Field(ge=0)  # weight of the distance to the half-half codes


class CibHash(Frozen):
    """Section ``train.cibhash``: constants of CIBHash's loss."""

    temperature: float = Field(gt=0)  # of the contrastive loss
    beta: float = Field(ge=0)  # weight of the divergence of two views' bits


class Sdc(Frozen):
    """Section ``train.sdc``: constants of SDC's loss."""

    shape: float = Field(gt=0)  # of the symmetric beta distribution that code cosines are calibrated to
    floor: float = Field(ge=-1, lt=1)  # least cosine that codes are calibrated to
    temperature: float = Field(gt=0)  # of the contrastive loss
    contrastive: float = Field(ge=0)  # weight of the contrastive loss
    quantization: float = Field(ge=0)  # weight of the quantization loss


class DuhEg(Frozen):
    """Section ``train.duh_eg``: constants of DUH-EG's bank of nouns and loss."""

    clusters: int = Field(gt=0)  # groups of nouns, at most
    representative: float = Field(ge=-1, le=1)  # cosine to its group's centre above which a noun is kept
    matching: float = Field(gt=0)  # temperature at which images are matched to nouns
    positive: float = Field(ge=-1, le=1)  # cosine of external features above which images are positives
    temperature: float = Field(gt=0)  # of the contrastive loss


class Backbone(Frozen):
    """Section ``train.backbone``: what is read when `network` is one; which model it is, ``backbone`` says."""

    image_size: int | None = Field(gt=0)  # pixels of an image's side; None: that which the model was made for
    lr_pretrained: float = Field(ge=0)  # factor of lr for the pretrained layers
    amp: bool  # bfloat16 on a GPU that has it
    checkpointing: bool  # recompute activations for the gradients: less memory, more time
    workers: int | None = Field(ge=0)  # processes that decode and augment; None: one a core


class Train(Frozen):
    """Section ``train``."""

    network: Literal["head", "backbone"]  # on the cached features, or end to end on images
    backbone: Backbone
    hidden: int = Field(gt=0)  # hidden units of the head
    dropout: float | None = Field(ge=0, lt=1)  # share of the features hidden from the head; None: the method's own
    epochs: int = Field(gt=0)
    batch_size: int = Field(gt=2)  # batches of two could leave a single image, which has no variance
    optimizer: Literal["sgd", "adamw"]
    momentum: float = Field(ge=0, lt=1)  # of sgd
    epsilon: float = Field(gt=0)  # added to the root of the second moment of adamw
    lr: float = Field(gt=0)  # at the start
    schedule: Literal["cosine", "staircase"]  # how lr falls: to 0, or by 1% every 200 steps (DSCH's)
    weight_decay: float = Field(ge=0)
    checkpoint: int = Field(gt=0)  # epochs between two checkpoints
    uhscm: Uhscm
    dsch: Dsch
    fused: Fused
    greedyhash: GreedyHash
    bihalf: BiHalf
    cibhash: CibHash
    sdc: Sdc
    duh_eg: DuhEg


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    method: Method
    bits: Bits
    seed: Seed
    device: Device
    train: Train
