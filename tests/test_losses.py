"""The losses: against loops written from the formulas, at extreme constants, and their gradients."""

import math

import pytest
import torch
from torch import Tensor

from stages.train.losses import (
    component_loss,
    contrastive_loss,
    cosine,
    instance_loss,
    quantization_loss,
    similarity_loss,
)


def random_codes(rows: int = 7, bits: int = 8, seed: int = 0) -> Tensor:
    """Relaxed codes (rows, bits), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.tanh(torch.randn(rows, bits, generator=generator, dtype=torch.float64))


def random_similarity(rows: int = 7, seed: int = 1) -> Tensor:
    """Cosines of random vectors, diagonal 1."""
    vectors = random_codes(rows, 3, seed)
    return cosine(vectors, vectors)


def dot(a: Tensor, b: Tensor) -> float:
    return float(sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)))


def slow_cosine(a: Tensor, b: Tensor) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def test_cosine() -> None:
    a, b = random_codes(3), random_codes(4, seed=2)
    expected = [[slow_cosine(x, y) for y in b] for x in a]
    torch.testing.assert_close(cosine(a, b), torch.tensor(expected, dtype=torch.float64))


def test_similarity_loss() -> None:
    codes, similarity = random_codes(), random_similarity()
    n = len(codes)
    pairs = [(slow_cosine(codes[i], codes[j]) - float(similarity[i, j])) ** 2 for i in range(n) for j in range(n)]
    assert similarity_loss(cosine(codes, codes), similarity).item() == pytest.approx(sum(pairs) / n**2)


def slow_contrastive(codes: Tensor, positive: Tensor, gamma: float) -> float:
    n, terms = len(codes), []
    for i in range(n):
        negatives = sum(math.exp(slow_cosine(codes[i], codes[k]) / gamma) for k in range(n) if not positive[i, k])
        for j in range(n):
            if positive[i, j]:
                terms.append(math.log(math.exp(slow_cosine(codes[i], codes[j]) / gamma) / (negatives + 1e-5)))
    return -sum(terms) / len(terms)


@pytest.mark.parametrize("gamma", [0.1, 0.2, 1.0])
@pytest.mark.parametrize("bound", [-0.5, 0.3, 0.9])
def test_contrastive_loss(gamma: float, bound: float) -> None:
    codes, positive = random_codes(), random_similarity() >= bound
    assert positive.diagonal().all()
    found = contrastive_loss(cosine(codes, codes), positive, gamma)
    assert found.item() == pytest.approx(slow_contrastive(codes, positive, gamma))


def test_contrastive_loss_where_a_row_has_no_negative() -> None:
    codes, positive = random_codes(), random_similarity() >= 0.3
    positive[2] = True
    found = contrastive_loss(cosine(codes, codes), positive, 0.2)
    assert found.item() == pytest.approx(slow_contrastive(codes, positive, 0.2))


def test_contrastive_loss_where_all_pairs_are_positive() -> None:
    codes = random_codes()
    found = contrastive_loss(cosine(codes, codes), torch.ones(7, 7, dtype=torch.bool), 0.2)
    assert found.item() == pytest.approx(slow_contrastive(codes, torch.ones(7, 7, dtype=torch.bool), 0.2))


def test_contrastive_loss_where_a_row_has_no_positive() -> None:
    codes, positive = random_codes(), random_similarity() >= 0.3
    positive[4] = False
    found = contrastive_loss(cosine(codes, codes), positive, 0.2)
    assert found.item() == pytest.approx(slow_contrastive(codes, positive, 0.2))


def test_contrastive_loss_without_positives_is_zero_with_gradient_zero() -> None:
    codes = random_codes().requires_grad_()
    loss = contrastive_loss(cosine(codes, codes), torch.zeros(7, 7, dtype=torch.bool), 0.2)
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(codes.grad, torch.zeros_like(codes))


def test_contrastive_loss_at_a_small_temperature() -> None:
    """exp(1 / 0.01) is beyond single precision; the logarithm of the ratio is not."""
    codes, positive = random_codes().float().requires_grad_(), random_similarity() >= 0.3
    assert math.isinf(torch.tensor(1 / 0.01).exp().item())
    loss = contrastive_loss(cosine(codes, codes), positive, 0.01)
    loss.backward()
    assert loss.item() == pytest.approx(slow_contrastive(codes.detach().double(), positive, 0.01), rel=1e-4)
    assert codes.grad.isfinite().all()


def slow_quantization(codes: Tensor) -> float:
    rows = [sum(((1 if z >= 0 else -1) - z) ** 2 for z in code) for code in codes.tolist()]
    return sum(rows) / len(rows)


def test_quantization_loss() -> None:
    codes = random_codes()
    assert quantization_loss(codes).item() == pytest.approx(slow_quantization(codes))


def test_quantization_loss_counts_zero_as_plus_one() -> None:
    codes = torch.tensor([[0.0, -0.25], [0.5, 1.0], [-1.0, -0.0]])
    expected = ((1 + 0.75**2) + 0.5**2 + 1) / 3
    assert quantization_loss(codes).item() == pytest.approx(expected)


def slow_instance(codes: Tensor, weight: Tensor, temperature: float) -> float:
    n, rows = len(codes), []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        total = sum(math.exp(slow_cosine(codes[i], codes[k]) / temperature) for k in others)
        logs = [-math.log(math.exp(slow_cosine(codes[i], codes[j]) / temperature) / total) for j in others]
        mass = sum(float(weight[i, j]) for j in others)
        rows.append(sum(float(weight[i, j]) * log for j, log in zip(others, logs, strict=True)) / mass)
    return sum(rows) / n


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_instance_loss(temperature: float) -> None:
    codes, weight = random_codes(), random_similarity().abs()
    found = instance_loss(cosine(codes, codes), weight, temperature)
    assert found.item() == pytest.approx(slow_instance(codes, weight, temperature))


def test_instance_loss_ignores_the_diagonal() -> None:
    codes, weight = random_codes(), random_similarity().abs()
    other = weight.clone().fill_diagonal_(123.0)
    matrix = cosine(codes, codes)
    assert instance_loss(matrix, weight, 0.5).item() == instance_loss(matrix, other, 0.5).item()


def test_instance_loss_where_an_image_resembles_no_other() -> None:
    codes, weight = random_codes().requires_grad_(), random_similarity().abs()
    weight[3] = 0
    weight[3, 3] = 1
    loss = instance_loss(cosine(codes, codes), weight, 0.5)
    loss.backward()
    kept = [i for i in range(7) if i != 3]
    one_by_one = []
    for i in kept:
        logits = (cosine(codes, codes)[i] / 0.5).detach()
        logits[i] = -math.inf
        row = weight[i].clone()
        row[i] = 0
        one_by_one.append(float(-(row * logits.log_softmax(0).nan_to_num(neginf=0)).sum() / row.sum()))
    assert loss.item() == pytest.approx(sum(one_by_one) / 7)
    assert codes.grad.isfinite().all()


def slow_component(codes: Tensor, centres: Tensor, prior: Tensor, assignment: Tensor, temperature: float) -> float:
    rows = []
    for code, shares in zip(codes, assignment, strict=True):
        joint = [float(p) * math.exp(slow_cosine(code, c) / temperature) for p, c in zip(prior, centres, strict=True)]
        target = [float(share / shares.sum()) for share in shares]
        rows.append(-sum(t * math.log(j / sum(joint)) for t, j in zip(target, joint, strict=True)))
    return sum(rows) / len(rows)


@pytest.mark.parametrize("level", [instance_loss, component_loss])
def test_dsch_terms_at_a_small_temperature(level: object) -> None:
    """exp(1 / 0.01) is beyond single precision; the logarithm of the softmax is not."""
    codes = random_codes().float().requires_grad_()
    if level is instance_loss:
        weight = random_similarity().abs()
        loss = instance_loss(cosine(codes, codes), weight.float(), 0.01)
        expected = slow_instance(codes.detach().double(), weight, 0.01)
    else:
        centres, prior = random_codes(4, seed=5).sign(), torch.full((4,), 0.25, dtype=torch.float64)
        assignment = random_codes(7, 4, seed=6).abs()
        loss = component_loss(codes, centres.float(), prior.float(), assignment.float(), 0.01)
        expected = slow_component(codes.detach().double(), centres, prior, assignment, 0.01)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert codes.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_one_component_explains_every_image(temperature: float) -> None:
    codes = random_codes().requires_grad_()
    one = torch.ones(7, 1, dtype=torch.float64)
    loss = component_loss(codes, random_codes(1, seed=5).sign(), one[0], one, temperature)
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(codes.grad, torch.zeros_like(codes))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_component_loss(temperature: float) -> None:
    codes, centres = random_codes(), random_codes(4, seed=5).sign()
    prior = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    assignment = torch.nn.functional.normalize(random_codes(7, 4, seed=6).abs(), dim=1)
    found = component_loss(codes, centres, prior, assignment, temperature)
    assert found.item() == pytest.approx(slow_component(codes, centres, prior, assignment, temperature))


def test_component_loss_with_an_empty_component() -> None:
    codes, centres = random_codes().requires_grad_(), random_codes(3, seed=5).sign()
    prior = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    assignment = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64).expand(7, 3)
    loss = component_loss(codes, centres, prior, assignment, 0.5)
    loss.backward()
    expected = slow_component(codes.detach(), centres[:2], prior[:2], assignment[:, :2], 0.5)
    assert loss.item() == pytest.approx(expected)
    assert codes.grad.isfinite().all()


LOSSES = {
    "similarity": lambda z: similarity_loss(cosine(z, z), random_similarity(len(z))),
    "contrastive": lambda z: contrastive_loss(cosine(z, z), random_similarity(len(z)) >= 0.3, 0.2),
    "quantization": quantization_loss,
    "instance": lambda z: instance_loss(cosine(z, z), random_similarity(len(z)).abs(), 0.5),
    "component": lambda z: component_loss(
        z, random_codes(4, seed=5).sign(), torch.full((4,), 0.25, dtype=z.dtype), random_codes(len(z), 4, 6).abs(), 0.5
    ),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


@each_loss
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(LOSSES[name], random_codes().requires_grad_())


def shuffled(name: str, codes: Tensor, order: Tensor) -> Tensor:
    """The loss of a shuffled batch whose similarities, positives and assignments are shuffled with it."""
    matrix, codes = cosine(codes[order], codes[order]), codes[order]
    similarity = random_similarity()[order][:, order]
    if name == "similarity":
        return similarity_loss(matrix, similarity)
    if name == "contrastive":
        return contrastive_loss(matrix, similarity >= 0.3, 0.2)
    if name == "quantization":
        return quantization_loss(codes)
    if name == "instance":
        return instance_loss(matrix, similarity.abs(), 0.5)
    prior, assignment = torch.full((4,), 0.25, dtype=codes.dtype), random_codes(7, 4, 6).abs()[order]
    return component_loss(codes, random_codes(4, seed=5).sign(), prior, assignment, 0.5)


@each_loss
def test_the_order_of_a_batch_is_no_matter(name: str) -> None:
    codes = random_codes().requires_grad_()
    loss = LOSSES[name](codes)
    (expected,) = torch.autograd.grad(loss, codes)
    for seed in range(3):
        order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        found = shuffled(name, codes, order)
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(torch.autograd.grad(found, codes)[0], expected)


@each_loss
def test_single_precision_agrees_with_double(name: str) -> None:
    codes = random_codes()
    single = LOSSES[name](codes.float().double())
    if name in ("quantization", "similarity", "contrastive", "instance"):
        matrix, similarity = cosine(codes.float(), codes.float()), random_similarity().float()
        found = {
            "quantization": lambda: quantization_loss(codes.float()),
            "similarity": lambda: similarity_loss(matrix, similarity),
            "contrastive": lambda: contrastive_loss(matrix, random_similarity() >= 0.3, 0.2),
            "instance": lambda: instance_loss(matrix, similarity.abs(), 0.5),
        }[name]()
    else:
        found = component_loss(codes.float(), random_codes(4, seed=5).sign().float(), torch.full((4,), 0.25),
                               random_codes(7, 4, 6).abs().float(), 0.5)  # fmt: skip
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(single.item(), rel=1e-5)


@each_loss
def test_equal_images_give_finite_losses_and_gradients(name: str) -> None:
    codes = random_codes(1).repeat(7, 1).requires_grad_()
    loss = LOSSES[name](codes)
    loss.backward()
    assert loss.isfinite()
    assert codes.grad.isfinite().all()


@each_loss
def test_codes_at_their_limits_give_finite_losses_and_gradients(name: str) -> None:
    codes = random_codes().sign().requires_grad_()
    loss = LOSSES[name](codes)
    loss.backward()
    assert loss.isfinite()
    assert codes.grad.isfinite().all()


def test_two_views_of_one_image_are_enough() -> None:
    """The smallest batch that there is: one image, two views."""
    codes = random_codes(2).requires_grad_()
    loss = instance_loss(cosine(codes, codes), torch.ones(2, 2, dtype=torch.float64), 0.5)
    loss.backward()
    assert loss.item() == 0
    assert codes.grad.isfinite().all()
