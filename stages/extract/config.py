"""Features of all images and of augmented views of the training images.

Reads data/images and models/clip, writes data/features.h5. Nothing else in the pipeline touches pixels, so everything
after this is cheap. A killed extraction goes on where it stopped.

Many machines share the work with extract.engine: ray, or with --shard I/N on each and --merge at the end; the file is
the same.

Of dataset.name: embeddings, which has features instead of images, it is a conversion: the features are scaled to unit
length, and the views are the features with noise added; of the section extract, views and seed are read.
"""

from pydantic import Field

from stages.clip import Precision
from stages.params import Device, Engine, Frozen, Seed


class Extract(Frozen):
    """Section ``extract``."""

    engine: Engine  # ray: by the machines of a Ray cluster
    views: int = Field(ge=2, le=64)  # augmented views of each training image; DSCH needs two
    batch_size: int = Field(gt=0)  # images and views of images decoded at a time
    precision: Precision  # that the image tower computes in; auto: float16 autocast on CUDA, float32 elsewhere
    workers: int = Field(ge=0)  # processes that decode; 0 decodes in the main process
    seed: Seed  # of the augmentation, or of the noise


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    device: Device
    extract: Extract
