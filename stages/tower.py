"""An image tower made ready to encode: the same function of an image, laid out for the device that computes it.

On the CPU, PyTorch gives the products of ``Linear`` to MKL, which on AMD runs at less than half of what oneDNN makes of
the same product; a convolution of one pixel goes to oneDNN. Measured in ``benchmarks/extraction.py``.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class PointwiseLinear(nn.Linear):
    """A linear layer, computed as a convolution of one pixel over rows that lie as pixels with their channels last."""

    def forward(self, rows: Tensor) -> Tensor:
        return pointwise(rows, self.weight, self.bias)


class PointwiseAttention(nn.MultiheadAttention):
    """Self-attention with :func:`pointwise` projections; any other attention is PyTorch's own."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *others: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        asked = {name: given for name, given in options.items() if given is not None}
        if others or asked != {"need_weights": False} or not query is key is value or query.ndim != 3:
            return super().forward(query, key, value, *others, **options)
        b, t, _ = query.shape
        projected = pointwise(query, self.in_proj_weight, self.in_proj_bias)
        queries, keys, values = projected.reshape(b, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(queries, keys, values)
        return pointwise(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias), None


def pointwise(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``rows @ weight.T + bias``: (..., n) to (..., m), with a weight (m, n)."""
    pixels = rows.reshape(1, -1, 1, rows.shape[-1]).permute(0, 3, 1, 2)
    made = functional.conv2d(pixels, weight[:, :, None, None], bias)
    return made.permute(0, 2, 3, 1).reshape(*rows.shape[:-1], -1)


def prepare(tower: nn.Module, device: torch.device, bfloat16: bool) -> None:
    """Lay out a tower in evaluation mode, in place. Its outputs stay the same up to rounding.

    Args:
        bfloat16: whether to compute in bfloat16; layers that normalise keep float32 parameters.
    """
    tower.to(memory_format=torch.channels_last)
    for layer in tower.modules():
        if bfloat16 and "Norm" not in type(layer).__name__:
            for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
                if tensor.is_floating_point():
                    tensor.data = tensor.data.bfloat16()
        if device.type != "cpu" or not torch.backends.mkldnn.is_available():
            continue
        # The class alone changes: names and shapes of the weights stay for whatever looks at them. Not the layers of
        # classes derived from these, which compute otherwise.
        if type(layer) is nn.Linear:
            layer.__class__ = PointwiseLinear
        elif type(layer) is nn.MultiheadAttention and _is_plain(layer):
            layer.__class__ = PointwiseAttention


def _is_plain(layer: nn.MultiheadAttention) -> bool:
    """Whether queries, keys and values are of one length and nothing is added to them."""
    return layer.in_proj_weight is not None and layer.batch_first and layer.bias_k is None and not layer.add_zero_attn
