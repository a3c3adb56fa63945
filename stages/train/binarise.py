"""Binary codes that gradients pass through as if they were the relaxed ones (straight-through)."""

from torch import Tensor


def signs(relaxed: Tensor) -> Tensor:
    """-1 or +1 of each entry, where 0 counts as +1; without a gradient."""
    return (relaxed.detach() >= 0).to(relaxed.dtype) * 2 - 1


def straight_through(relaxed: Tensor, binary: Tensor) -> Tensor:
    """The values of `binary`, the gradient of `relaxed`; both of one shape.

    Source: Bengio et al., 2013 (arXiv 1308.3432).
    """
    return binary.detach() + (relaxed - relaxed.detach())  # exact: the difference is 0
