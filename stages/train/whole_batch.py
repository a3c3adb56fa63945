"""A network that several ranks train as one that sees the whole batch: what its layers do over rows, they share.

Layers that look at one row at a time need nothing. Batch normalisation takes its moments over the rows of all ranks,
and dropout draws for the rows of all.

Source: Ioffe & Szegedy, 2015 (arXiv 1502.03167), section 3; pooled moments: Chan, Golub & LeVeque, 1979.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from stages.errors import InputError
from stages.train.distributed import Ranks, gather

#: Layers that do something over the rows of a batch; and the name of one more, which is timm's and others'.
SHARING, DROPS_PATHS = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd), "DropPath"
#: Functions that draw which entries to drop.
DROPOUT = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


class Replica:
    """The network as a rank trains it; one process alone trains the network itself."""

    def __init__(self, net: nn.Module, others: Iterable[nn.Parameter], ranks: Ranks) -> None:
        """Bring the network of the first rank to all.

        Args:
            others: parameters outside of the network, whose gradients all ranks compute of the whole batch.
        """
        self.ranks, self.others, self.net = ranks, list(others), net
        if ranks.world > 1:
            self._batch = _WholeBatch()
            for module in net.modules():
                if isinstance(module, SHARING) or type(module).__name__ == DROPS_PATHS:
                    module.forward = self._batch.within(module.forward)
            device = next(net.parameters()).device
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of a name that changed in 2.14
                # A static graph allows for parameters that a backbone does not use, and activations computed again.
                self.net = DistributedDataParallel(
                    net, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False,
                    static_graph=True,
                )  # fmt: skip

    def __call__(self, inputs: Tensor, count: int) -> Tensor:
        """Relaxed codes (views * count, K) of a batch of `count` images, of which `inputs` are this rank's part."""
        if self.ranks.world == 1:
            return self.net(inputs)
        part = self.ranks.part(count)
        views = len(inputs) // (part.stop - part.start)
        self._batch.places, self._batch.total = self.ranks.places(count, views), views * count
        return gather(self.net(inputs), self.ranks, count)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the whole batch's loss, the same in all ranks."""
        loss.backward()
        if self.ranks.world > 1:
            for parameter in self.others:  # as equal as rounding lets them be; unequal ones would drift apart
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= self.ranks.world


class _WholeBatch(TorchFunctionMode):
    """Within it, what a layer does over the rows of a batch, it does over those of all ranks.

    Attributes:
        places: of the rows of this rank among all `total`.
    """

    places: Tensor
    total: int

    def within(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`forward` of a layer within this, whenever that is: activations may be computed again for the gradients."""

        def inside(*args: Any, **kwargs: Any) -> Tensor:
            with self:
                return forward(*args, **kwargs)

        return inside

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        if func in DROPOUT:
            return self._dropout(func, *args, **kwargs)
        if func is torch.Tensor.bernoulli_:
            return self._bernoulli(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, func: Any, rows: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return func(rows, p, training, inplace)
        kept = self._mine(func(self._of_all(rows).fill_(1), p))
        return rows.mul_(kept) if inplace else rows * kept

    def _bernoulli(self, rows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As paths are dropped."""
        return rows.copy_(self._mine(self._of_all(rows).bernoulli_(*args, **kwargs)))

    def _of_all(self, rows: Tensor) -> Tensor:
        """Room for as many numbers as one process would draw. A row of the batch may be several of the tensor's."""
        several, rest = divmod(len(rows), len(self.places))
        if rest:
            raise InputError("train.network: this backbone draws numbers that do not go with the rows of a batch; "
                             "train it in one process")  # fmt: skip
        return rows.new_empty(self.total * several, *rows.shape[1:])

    def _mine(self, drawn: Tensor) -> Tensor:
        return drawn.unflatten(0, (self.total, -1))[self.places.to(drawn.device)].flatten(0, 1)


def _batch_norm(
    inputs: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """:func:`torch.nn.functional.batch_norm` of (b, C, ...) over the rows of all ranks."""
    if not training:
        return F.batch_norm(inputs, running_mean, running_var, weight, bias, training, momentum, eps)
    rows = inputs.float() if inputs.dtype in (torch.float16, torch.bfloat16) else inputs
    normalised, mean, variance, n = _Normalised.apply(rows, weight, bias, eps)
    if running_mean is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * n / (n - 1)).to(running_var), momentum)
    return normalised.to(inputs.dtype)


class _Normalised(torch.autograd.Function):
    """Rows (b, C, ...) by the mean and variance (C,) of all ranks' rows, times weight, plus bias (C,).

    What passes over the rows is what PyTorch's own layer is made of, once each; what is sent is of C numbers.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """With them the mean, the variance and the number n of the rows that they are of."""
        own, spread = torch.batch_norm_update_stats(rows, None, None, 0.0)
        count = own.new_tensor([rows.numel() / rows.shape[1]])
        moments = torch.cat([count, own, spread])
        found = [torch.empty_like(moments) for _ in range(dist.get_world_size())]
        dist.all_gather(found, moments)
        counts, means, spreads = torch.stack(found).split([1, len(own), len(own)], dim=1)
        n = counts.sum()
        mean = (counts * means).sum(0) / n
        variance = (counts * (spreads + (means - mean).square())).sum(0) / n
        ctx.save_for_backward(rows, weight, mean, variance, n)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, n)
        return F.batch_norm(rows, mean, variance, weight, bias, eps=eps), mean, variance, n

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        rows, weight, mean, variance, n = ctx.saved_tensors
        # As if mean and variance were constants; then what comes of their own dependence on the rows of all ranks.
        of_rows, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, rows, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias])
        dist.all_reduce(sums)
        along, constant = sums / n
        scale = (variance + ctx.eps).rsqrt()
        slope = -along * scale.square() * (1 if weight is None else weight)
        level = -constant * scale * (1 if weight is None else weight) - slope * mean
        shape = (-1, *[1] * (rows.dim() - 2))
        of_rows.addcmul_(rows, slope.view(shape)).add_(level.view(shape))
        return of_rows, None if weight is None else of_weight, of_bias if ctx.needs_input_grad[2] else None, None
