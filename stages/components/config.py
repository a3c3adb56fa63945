"""Semantic components: a mixture of fine ones, their co-occurrence and a coarse level (DSCH, first E-step).

Reads data/features.h5, writes data/components.h5. Training starts from these components and then re-estimates them on
its own codes; here they can be inspected before any training.

EM holds no responsibilities of all images at once. With `components.batch`, it updates the components from random
batches of so many images: with a million images, a few passes over them do. A GPU is used where the work is worth it.
"""

from typing import Literal

from pydantic import Field, model_validator

from stages.params import Device, Frozen, Seed


class Components(Frozen):
    """Section ``components``."""

    mixture: Literal["gaussian", "kmeans"]  # what the fine components are
    covariance: Literal["diagonal", "spherical", "full"]  # form of the Gaussians' covariances
    assignment: Literal["soft", "hard"]  # all responsibilities of an image, or 1 for the likeliest component
    fine: int = Field(gt=0)  # fine components (the paper's m1)
    coarse: int = Field(gt=0)  # clusters of component means (m2)
    pca: int = Field(gt=0)  # dimensions that the features are reduced to
    iterations: int = Field(gt=0)  # EM iterations, or with batches passes over all images, at most
    batch: int | None = Field(gt=0)  # images that an update is made from, for very many; None: all of them
    reg_covar: float = Field(gt=0, lt=1)  # added to every variance, as a share of the data's largest variance
    top: int = Field(gt=0)  # responsibilities kept per image

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Components":
        if self.coarse > self.fine:
            raise ValueError(f"coarse ({self.coarse}) must be at most fine ({self.fine})")
        if self.batch is not None and self.batch < self.fine:
            raise ValueError(f"batch ({self.batch}) must be at least fine ({self.fine}), or null")
        return self


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    seed: Seed
    device: Device
    components: Components
