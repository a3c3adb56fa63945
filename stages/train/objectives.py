"""What each method minimises: the terms of a batch, and what it re-estimates between epochs."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from stages.similarity.matrix import SimilarityMatrix
from stages.train.config import Dsch, Train, Uhscm
from stages.train.estep import CodeComponents, FirstComponents, e_step, first_components
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

    def __init__(self, similarity: SimilarityMatrix, options: Uhscm, device: torch.device) -> None:
        self.options = options
        factor = torch.tensor(similarity.factor, device=device)
        self.similarity = replace(similarity, factor=factor)

    def begin_epoch(self, epoch: int, all_codes: Callable[[], Tensor]) -> None:
        """Nothing depends on the codes."""

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        options = self.options
        target, code_cosine = self.similarity.block(rows, rows), cosine(codes, codes)
        return {
            "similarity": similarity_loss(code_cosine, target),
            "contrastive": options.alpha * contrastive_loss(code_cosine, target >= options.positive, options.gamma),
            "quantization": options.beta * quantization_loss(codes),
        }

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take back."""


class DschObjective:
    """Instance, fine and coarse terms over components that an E-step re-estimates (DSCH)."""

    views = 2

    def __init__(self, first: FirstComponents, options: Dsch, seed: int) -> None:
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
    """UHSCM's terms and DSCH's fine and coarse terms on the same codes."""

    views = 2

    def __init__(self, uhscm: UhscmObjective, dsch: DschObjective) -> None:
        self.uhscm, self.dsch = uhscm, dsch
        self.begin_epoch, self.state, self.restore = dsch.begin_epoch, dsch.state, dsch.restore

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        return {**self.uhscm.terms(codes, rows), **self.dsch.component_terms(codes, rows)}


def make_objective(
    method: str, options: Train, similarity: SimilarityMatrix, first: FirstComponents, seed: int, device: torch.device
) -> Objective:
    """The objective of a `method` of ``params.yaml``."""
    uhscm = UhscmObjective(similarity, options.uhscm, device)
    dsch = DschObjective(first, options.dsch, seed)
    return {"uhscm": uhscm, "dsch": dsch, "fused": FusedObjective(uhscm, dsch)}[method]
