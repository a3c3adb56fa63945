"""What each method minimises: the terms of a batch, and what it re-estimates between epochs."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from stages.components.artifact import Components
from stages.similarity.matrix import SimilarityMatrix
from stages.train.config import Dsch, Train, Uhscm
from stages.train.estep import CodeComponents, e_step, first_components
from stages.train.losses import (
    component_loss,
    contrastive_loss,
    cosine,
    instance_loss,
    quantization_loss,
    similarity_loss,
)

Terms = dict[str, Tensor]


class Objective(Protocol):
    """A method: `views` augmented views of each image go into a step."""

    views: int

    def begin_epoch(self, epoch: int, all_codes: Callable[[], Tensor]) -> None:
        """Re-estimate what depends on the codes (n, K) of all training images."""

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        """Weighted terms, to be summed, of codes (views * b, K) of the images `rows` (views * b,)."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take back :meth:`state`."""


class UhscmObjective:
    """Similarity, modified contrastive and quantization loss (UHSCM, step 6)."""

    views = 1

    def __init__(self, similarity: SimilarityMatrix, options: Uhscm, device: torch.device,
                 target: SimilarityMatrix | None = None) -> None:  # fmt: skip
        """`similarity` decides which pairs are positive, and what code cosines are drawn to unless `target` does."""
        self.options = options
        self.similarity = replace(similarity, factor=torch.tensor(similarity.factor, device=device))
        self.target = target and replace(target, factor=torch.tensor(target.factor, device=device))

    def begin_epoch(self, epoch: int, all_codes: Callable[[], Tensor]) -> None:
        """Nothing depends on the codes."""

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        options, code_cosine = self.options, cosine(codes, codes)
        similarity = self.similarity.block(rows, rows)
        target = self.target.block(rows, rows) if self.target else similarity
        return {
            "similarity": similarity_loss(code_cosine, target),
            "contrastive": options.alpha * contrastive_loss(code_cosine, similarity >= options.positive, options.gamma),
            "quantization": options.beta * quantization_loss(codes),
        }

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


class DschObjective:
    """Instance, fine and coarse terms over components that an E-step re-estimates (DSCH)."""

    views = 2

    def __init__(self, first: Components, options: Dsch, seed: int) -> None:
        self.first, self.options, self.seed = first, options, seed
        self.components: CodeComponents | None = None

    def begin_epoch(self, epoch: int, all_codes: Callable[[], Tensor]) -> None:
        if self.components is None:
            self.components = first_components(all_codes(), self.first)
        elif epoch % self.options.round == 0:
            self.components = e_step(all_codes(), self.components, self.seed)

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        fine = self.components.fine[rows]
        instance = instance_loss(cosine(codes, codes), fine @ fine.T, self.options.temperature)
        return {"instance": instance, **self.component_terms(codes, rows)}

    def component_terms(self, codes: Tensor, rows: Tensor) -> Terms:
        """The fine and the coarse term alone."""
        parts, weight, t = self.components, self.options.weight, self.options.temperature
        fine = component_loss(codes, parts.fine_centres, parts.fine_prior, parts.fine[rows], t)
        coarse = component_loss(codes, parts.coarse_centres, parts.coarse_prior, parts.coarse[rows], t)
        return {"fine": weight * fine, "coarse": weight * coarse}

    def state(self) -> dict[str, Any]:
        return {} if self.components is None else asdict(self.components)

    def restore(self, state: dict[str, Any]) -> None:
        self.components = CodeComponents(**state) if state else None


class FusedObjective:
    """UHSCM's terms and DSCH's fine and coarse terms on the same codes.

    The codes follow a softer similarity than UHSCM's own. Mined distributions are all but one-hot, so an image counts
    for its top concept alone; raised to a power below 1 they are those of a lower temperature (the cosine does not mind
    the scale), and the lesser concepts return. And since no more than two groups of codes can all be opposite, images
    without a concept in common are drawn to a cosine near 0 instead of -1. Positive pairs are UHSCM's.
    """

    views = 2

    def __init__(self, similarity: SimilarityMatrix, first: Components, options: Train, seed: int,
                 device: torch.device) -> None:  # fmt: skip
        fused = options.fused
        factor = similarity.factor**fused.temper
        softer = SimilarityMatrix(
            factor / np.linalg.norm(factor, axis=1, keepdims=True), 1 - fused.dissimilar, fused.dissimilar
        )
        uhscm = options.uhscm.model_copy(update={"alpha": fused.alpha})
        self.uhscm = UhscmObjective(similarity, uhscm, device, target=softer)
        self.dsch = DschObjective(first, options.dsch.model_copy(update={"weight": fused.weight}), seed)
        self.begin_epoch, self.state, self.restore = self.dsch.begin_epoch, self.dsch.state, self.dsch.restore

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        return {**self.uhscm.terms(codes, rows), **self.dsch.component_terms(codes, rows)}


def make_objective(
    method: str, options: Train, similarity: SimilarityMatrix | None, first: Components, seed: int, device: torch.device
) -> Objective:
    """The objective of a `method` of ``params.yaml``; `similarity` may be None for ``dsch`` alone."""
    if method == "dsch":
        return DschObjective(first, options.dsch, seed)
    if method == "uhscm":
        return UhscmObjective(similarity, options.uhscm, device)
    return FusedObjective(similarity, first, options, seed, device)
