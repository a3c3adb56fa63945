"""DSCH: instance, fine and coarse terms over components that an E-step re-estimates."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from stages.train.estep import CodeComponents, e_step, first_components
from stages.train.losses import component_loss, cosine, instance_loss
from stages.train.methods.objective import Inputs, Objective, Terms


class Dsch(Objective):
    """Codes near those of their components and of images with the same components.

    Source: DSCH (arXiv 2203.09420), section 3.3.
    """

    views = 2

    def __init__(self, inputs: Inputs) -> None:
        self.first, self.options, self.seed = inputs.components, inputs.options.dsch, inputs.seed
        self.ranks = inputs.ranks
        self.components: CodeComponents | None = None

    def begin_epoch(self, epoch: int, all_codes: Callable[[], Tensor]) -> None:
        if epoch % self.options.round:
            return
        if epoch < self.options.warmup * self.options.round:
            self.components = first_components(all_codes(), self.first, self.ranks)
        else:
            self.components = e_step(all_codes(), self.components, self.first.options, self.seed, self.ranks)

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        options, parts, t = self.options, self.components, self.options.temperature
        fine, coarse = parts.fine[rows], parts.coarse[rows]
        return {
            "instance": options.instance * instance_loss(cosine(codes, codes), fine @ fine.T, t),
            "fine": options.fine * component_loss(codes, parts.fine_centres, parts.fine_prior, fine, t),
            "coarse": options.coarse * component_loss(codes, parts.coarse_centres, parts.coarse_prior, coarse, t),
        }

    def state(self) -> dict[str, Any]:
        return {} if self.components is None else asdict(self.components)

    def restore(self, state: dict[str, Any]) -> None:
        self.components = CodeComponents(**state) if state else None
