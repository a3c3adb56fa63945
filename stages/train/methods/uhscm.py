"""UHSCM: similarity, modified contrastive and quantization loss."""

from dataclasses import replace

import torch
from torch import Tensor

from stages.train.losses import contrastive_loss, cosine, quantization_loss, similarity_loss
from stages.train.methods.objective import Inputs, Objective, Terms


class Uhscm(Objective):
    """Codes as alike as the images' concepts.

    Source: UHSCM (arXiv 2209.11475), section 3.3.
    """

    needs_text = True

    def __init__(self, inputs: Inputs) -> None:
        self.options = inputs.options.uhscm
        factor = torch.from_numpy(inputs.similarity.factor).to(inputs.features.device)
        self.similarity = replace(inputs.similarity, factor=factor)  # blocks of it are tensors

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        options, code_cosine, similarity = self.options, cosine(codes, codes), self.similarity.block(rows, rows)
        return {
            "similarity": similarity_loss(code_cosine, similarity),
            "contrastive": options.alpha * contrastive_loss(code_cosine, similarity >= options.positive, options.gamma),
            "quantization": options.beta * quantization_loss(codes),
        }
