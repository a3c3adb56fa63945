"""The deep neighbours: losses against loops written from the formulas, gradients, degenerate batches, training."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
import training_run
from scipy import stats
from torch import Tensor
from training_run import run_interrupted, train_params

from stages.artifacts import CONCEPTS, HASHNET, SIMILARITY, Provenance
from stages.errors import InputError
from stages.features import Features
from stages.hashnet import load_hashnet, relaxed_codes
from stages.mine.leakage import IMAGES_ALONE, WHOLE_VOCABULARY
from stages.params import Method
from stages.tables import fixed_size_lists, write_table
from stages.train.binarise import signs, straight_through
from stages.train.methods.bihalf import alignment_loss, half_half
from stages.train.methods.cibhash import bernoulli_divergence, nt_xent
from stages.train.methods.duh_eg import external_features, group_contrastive_loss, noun_bank
from stages.train.methods.greedyhash import cubic_penalty, pair_similarity_loss
from stages.train.methods.objective import Inputs, Objective
from stages.train.methods.registry import METHODS
from stages.train.methods.sdc import angular_quantization_loss, beta_quantiles, calibration_loss
from stages.train.stage import CURVES, run

NEIGHBOURS = ("greedyhash", "bihalf", "cibhash", "sdc", "duh_eg")
each_neighbour = pytest.mark.parametrize("method", NEIGHBOURS)


def random_codes(rows: int = 8, bits: int = 6, seed: int = 0) -> Tensor:
    """Relaxed codes (rows, bits), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.tanh(torch.randn(rows, bits, generator=generator, dtype=torch.float64))


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def slow_cosine(a: Tensor, b: Tensor) -> float:
    dot, aa, bb = (sum(x * y for x, y in zip(p.tolist(), q.tolist(), strict=True)) for p, q in ((a, b), (a, a), (b, b)))
    return dot / math.sqrt(aa * bb)


def test_the_registry_has_the_methods_that_params_allow() -> None:
    assert tuple(METHODS) == get_args(Method)


def test_the_audit_knows_what_each_method_learns_from() -> None:
    guided = {name for name, m in METHODS.items() if m.needs_text or m.uses_distribution or m.needs_concepts}
    assert METHODS.keys() - guided == IMAGES_ALONE
    assert {name for name, m in METHODS.items() if m.needs_concepts} == WHOLE_VOCABULARY


# Binarisation


def test_signs_count_zero_as_plus_one() -> None:
    assert signs(torch.tensor([[-0.5, 0.0, -0.0, 0.25]])).tolist() == [[-1, 1, 1, 1]]


def test_a_straight_through_gradient_is_that_of_the_codes() -> None:
    """Values are binary to the last bit; d loss / d binary arrives unchanged at the relaxed codes."""
    relaxed, weight = random_codes().float().requires_grad_(), random_codes(seed=3).float()
    binary = straight_through(relaxed, signs(relaxed))
    assert set(binary.flatten().tolist()) == {-1.0, 1.0}
    (binary.pow(2) * weight + binary * weight).sum().backward()
    torch.testing.assert_close(relaxed.grad, 2 * signs(relaxed) * weight + weight, rtol=0, atol=0)


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_half_of_every_bit_is_plus_one(rows: int) -> None:
    codes = random_codes(rows)
    expected = [[0.0] * 6 for _ in range(rows)]
    for bit in range(6):
        rank = sorted(range(rows), key=lambda row: -float(codes[row, bit]))
        for place, row in enumerate(rank):
            expected[row][bit] = 1.0 if place < rows // 2 else -1.0
    assert half_half(codes).tolist() == expected


def test_half_half_of_equal_images_is_still_half() -> None:
    assert half_half(torch.zeros(4, 3)).sum(dim=0).tolist() == [0, 0, 0]


def test_the_layer_of_bi_half_has_the_gradient_of_the_paper() -> None:
    """d L / d U = d L / d B + gamma / (N K) (U - B), here by a layer and a term."""
    codes, gamma, weight = random_codes().requires_grad_(), 3.0, random_codes(seed=3)
    binary = half_half(codes)
    ((straight_through(codes, binary) * weight).sum() + gamma * alignment_loss(codes)).backward()
    torch.testing.assert_close(codes.grad, weight + gamma / codes.numel() * (codes.detach() - binary))


# Losses


def slow_pair_similarity(codes: Tensor, features: Tensor) -> float:
    half = len(codes) // 2
    differences = [
        slow_cosine(codes[i], codes[half + i]) - slow_cosine(features[i], features[half + i]) for i in range(half)
    ]
    return sum(d**2 for d in differences) / half


@pytest.mark.parametrize("rows", [2, 3, 8, 9])
def test_pair_similarity_loss(rows: int) -> None:
    codes, features = random_codes(rows), random_codes(rows, 4, seed=1)
    found = pair_similarity_loss(codes, features)
    assert found.item() == pytest.approx(slow_pair_similarity(codes, features))


def test_cubic_penalty() -> None:
    codes = random_codes()
    cubes = [abs(z - (1 if z >= 0 else -1)) ** 3 for z in codes.flatten().tolist()]
    assert cubic_penalty(codes).item() == pytest.approx(sum(cubes) / len(cubes))


def test_alignment_loss() -> None:
    codes = random_codes()
    squares = (codes - half_half(codes)).flatten().tolist()
    assert alignment_loss(codes).item() == pytest.approx(sum(s**2 for s in squares) / len(squares) / 2)


def slow_nt_xent(codes: Tensor, temperature: float) -> float:
    n = len(codes)
    total = 0.0
    for i in range(n):
        others = [math.exp(slow_cosine(codes[i], codes[k]) / temperature) for k in range(n) if k != i]
        partner = math.exp(slow_cosine(codes[i], codes[(i + n // 2) % n]) / temperature)
        total -= math.log(partner / sum(others))
    return total / n


@pytest.mark.parametrize("temperature", [0.1, 0.3, 2.0])
@pytest.mark.parametrize("rows", [2, 4, 8])
def test_nt_xent(rows: int, temperature: float) -> None:
    codes = random_codes(rows)
    assert nt_xent(codes, temperature).item() == pytest.approx(slow_nt_xent(codes, temperature), abs=1e-12)


def test_bernoulli_divergence() -> None:
    p, q = (1 + random_codes()) / 2, (1 + random_codes(seed=5)) / 2
    total = 0.0
    for a, b in zip(p.flatten().tolist(), q.flatten().tolist(), strict=True):
        total += a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
    assert bernoulli_divergence(p, q).item() == pytest.approx(total / len(p), rel=1e-6)
    assert bernoulli_divergence(p, p).item() == 0


@pytest.mark.parametrize("shape", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("count", [1, 2, 64])
def test_beta_quantiles(count: int, shape: float) -> None:
    expected = 2 * stats.beta(shape, shape).ppf([(i + 0.5) / count for i in range(count)]) - 1
    np.testing.assert_allclose(beta_quantiles(count, shape), expected, atol=1e-12)


@pytest.mark.parametrize("floor", [-1.0, 0.0])
def test_calibration_loss(floor: float) -> None:
    codes, features = random_codes(9), random_codes(9, 4, seed=1)
    couples = [(features[i], features[4 + i], codes[i], codes[4 + i]) for i in range(4)]
    likeness = sorted((slow_cosine(a, b), slow_cosine(c, d)) for a, b, c, d in couples)
    target = [max(float(stats.beta(5, 5).ppf((i + 0.5) / 4)) * 2 - 1, floor) for i in range(4)]
    expected = sum(abs(code - t) for (_, code), t in zip(likeness, target, strict=True)) / 4
    assert calibration_loss(codes, features, 5.0, floor).item() == pytest.approx(expected)


def test_angular_quantization_loss() -> None:
    codes = random_codes()
    expected = sum(1 - slow_cosine(code, torch.where(code >= 0, 1.0, -1.0)) for code in codes) / len(codes)
    assert angular_quantization_loss(codes).item() == pytest.approx(expected)


def random_groups(rows: int = 8) -> Tensor:
    external = unit(random_codes(rows, 3, seed=7))
    return (external @ external.T > 0.5).fill_diagonal_(True)


@pytest.mark.parametrize("temperature", [0.2, 0.8])
def test_group_contrastive_loss(temperature: float) -> None:
    a, b, positive = random_codes(), random_codes(seed=4), random_groups()
    total = 0.0
    for i in range(len(a)):
        each = [math.exp(slow_cosine(a[i], row) / temperature) for row in b]
        total -= math.log(sum(e for e, p in zip(each, positive[i].tolist(), strict=True) if p) / sum(each))
    assert group_contrastive_loss(a, b, positive, temperature).item() == pytest.approx(total / len(a))


def test_group_contrastive_loss_where_all_are_positive_is_zero() -> None:
    loss = group_contrastive_loss(random_codes(), random_codes(seed=4), torch.ones(8, 8, dtype=torch.bool), 0.8)
    assert loss.item() == pytest.approx(0, abs=1e-12)


#: Functions of relaxed codes (8, 6).
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "pair_similarity": lambda z: pair_similarity_loss(z, random_codes(len(z), 4, seed=1).to(z)),
    "cubic_penalty": cubic_penalty,
    "alignment": alignment_loss,
    "nt_xent": lambda z: nt_xent(z, 0.3),
    "divergence": lambda z: bernoulli_divergence((1 + z) / 2, ((1 + random_codes(seed=5)) / 2).to(z)),
    "divergence_of_constant": lambda z: bernoulli_divergence(((1 + random_codes(seed=5)) / 2).to(z), (1 + z) / 2),
    "calibration": lambda z: calibration_loss(z, random_codes(len(z), 4, seed=1).to(z), 5.0, -1.0),
    "angular_quantization": angular_quantization_loss,
    "group_first": lambda z: group_contrastive_loss(z, random_codes(seed=4).to(z), random_groups(), 0.8),
    "group_second": lambda z: group_contrastive_loss(random_codes(seed=4).to(z), z, random_groups(), 0.8),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


@each_loss
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(LOSSES[name], random_codes().requires_grad_())


@each_loss
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_equal_images_give_finite_losses_and_gradients(name: str, scale: float) -> None:
    codes = (scale * random_codes(1)).repeat(8, 1).float().requires_grad_()
    loss = LOSSES[name](codes)
    loss.backward()
    assert loss.isfinite()
    assert codes.grad.isfinite().all()


@each_loss
def test_codes_at_their_limits_give_finite_losses_and_gradients(name: str) -> None:
    """tanh reaches 1 in single precision, and with it probabilities of 0."""
    before = (20 * random_codes().sign().float()).requires_grad_()
    codes = torch.tanh(before)
    assert codes.abs().min() == 1
    loss = LOSSES[name](codes)
    loss.backward()
    assert loss.isfinite()
    assert before.grad.isfinite().all()


@pytest.mark.parametrize("name", ["nt_xent", "group"])
def test_a_small_temperature_does_not_overflow(name: str) -> None:
    codes = random_codes().float().requires_grad_()
    assert math.isinf(torch.tensor(1 / 0.01).exp().item())
    other = random_codes(seed=4).float()
    loss = nt_xent(codes, 0.01) if name == "nt_xent" else group_contrastive_loss(codes, other, random_groups(), 0.01)
    loss.backward()
    exact = codes.detach().double()
    slow = slow_nt_xent(exact, 0.01) if name == "nt_xent" else float(
        group_contrastive_loss(exact, other.double(), random_groups(), 0.01)
    )  # fmt: skip
    assert loss.item() == pytest.approx(slow, rel=1e-4)
    assert codes.grad.isfinite().all()


def test_calibration_is_the_wasserstein_distance_where_the_order_is_kept() -> None:
    """Codes that are the features: the mean of the sorted differences."""
    rows = random_codes(16)
    found = calibration_loss(rows, rows, 5.0, -1.0).item()
    code_cosine = [slow_cosine(rows[i], rows[8 + i]) for i in range(8)]
    assert found == pytest.approx(stats.wasserstein_distance(code_cosine, beta_quantiles(8, 5.0)))


# The nouns of DUH-EG


def test_the_bank_of_a_small_vocabulary_is_all_of_it_once() -> None:
    texts = unit(random_codes(6, 5)).numpy().astype(np.float32)
    doubled = np.concatenate([texts[:2], texts])  # the first two come twice
    assert noun_bank(doubled, 800, 0.9, seed=0).tolist() == [0, 1, 4, 5, 6, 7]


def test_the_bank_has_the_nearest_of_each_group_and_all_that_are_near() -> None:
    """Three nouns about one direction, two of them close to the centre; two about another, neither close."""
    angles = np.deg2rad([0.0, 6.0, 40.0, 150.0, 214.0])
    texts = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    kept = noun_bank(texts, 2, 0.95, seed=0)
    for group in ([0, 1, 2], [3, 4]):
        centre = texts[group].mean(axis=0)
        cosine = texts[group] @ centre / np.linalg.norm(centre)
        near = {row for row, c in zip(group, cosine, strict=True) if c > 0.95} | {group[int(cosine.argmax())]}
        assert set(kept.tolist()) & set(group) == near
    assert len(kept) == 3


def test_external_features_are_the_weighted_mean_noun() -> None:
    features, nouns = unit(random_codes(5, 4)), unit(random_codes(7, 4, seed=2))
    found = external_features(features, nouns, 0.1)
    for image, row in zip(features, found, strict=True):
        weights = [math.exp(float(image @ noun) / 0.1) for noun in nouns]
        mean = sum(w * noun for w, noun in zip(weights, nouns, strict=True))
        torch.testing.assert_close(row, mean / mean.norm())
    assert external_features(features.float(), nouns.float(), 1e-4).isfinite().all()


def test_external_features_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    features, nouns = unit(random_codes(5, 4)), unit(random_codes(7, 4, seed=2))
    whole = external_features(features, nouns, 0.1)
    monkeypatch.setattr("stages.train.methods.duh_eg.CHUNK", 2)
    torch.testing.assert_close(external_features(features, nouns, 0.1), whole)


# The methods


def make(method: str, bits: int = 16, seed: int = 0, n: int = 40, **changes: Any) -> Objective:
    """The method on random features of 12 dimensions and 9 candidate concepts."""
    options = train_params(method, bits=bits).train
    if changes:
        section = getattr(options, method).model_copy(update=changes)
        options = options.model_copy(update={method: section})
    features, texts = unit(random_codes(n, 12, seed=8)).float(), unit(random_codes(9, 12, seed=9)).float().numpy()
    objective = METHODS[method](Inputs(features, None, None, options, bits, seed, concepts=texts))
    objective.begin_epoch(0, lambda: torch.zeros(n, bits))
    return objective


def batch(objective: Objective, images: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:images].repeat(objective.views)
    return random_codes(len(rows), 16, seed).float().requires_grad_(), rows


def total(objective: Objective, codes: Tensor, rows: Tensor) -> Tensor:
    return torch.stack(list(objective.terms(codes, rows).values())).sum()


def test_greedyhash_weighs_its_terms() -> None:
    objective = make("greedyhash", penalty=0.25)
    codes, rows = batch(objective)
    found = objective.terms(codes, rows)
    torch.testing.assert_close(found["similarity"], pair_similarity_loss(signs(codes), objective.features[rows]))
    torch.testing.assert_close(found["penalty"], 0.25 * cubic_penalty(codes))


def test_bihalf_weighs_its_terms() -> None:
    objective = make("bihalf", gamma=6.0)
    codes, rows = batch(objective)
    found = objective.terms(codes, rows)
    torch.testing.assert_close(found["similarity"], pair_similarity_loss(half_half(codes), objective.features[rows]))
    torch.testing.assert_close(found["alignment"], 6 * alignment_loss(codes))


def test_sdc_weighs_its_terms() -> None:
    objective = make("sdc", shape=2.0, floor=0.0, temperature=0.2, contrastive=0.5, quantization=0.75)
    codes, rows = batch(objective)
    found = objective.terms(codes, rows)
    first = calibration_loss(codes[:10], objective.features[rows[:10]], 2.0, 0.0)
    torch.testing.assert_close(found["calibration"], first)
    torch.testing.assert_close(found["contrastive"], 0.5 * nt_xent(codes, 0.2))
    torch.testing.assert_close(found["quantization"], 0.75 * angular_quantization_loss(codes))


def test_duh_eg_contrasts_views_and_external_codes() -> None:
    objective = make("duh_eg", matching=0.1, positive=0.6, temperature=0.5)
    codes, rows = batch(objective)
    found = objective.terms(codes, rows)
    texts = torch.from_numpy(unit(random_codes(9, 12, seed=9)).float().numpy())
    external = external_features(unit(random_codes(40, 12, seed=8)).float(), texts, 0.1)[rows[:10]]
    positive = external @ external.T > 0.6
    assert 10 < positive.sum() < 100  # some are positives of one another, some are not
    text_codes = objective.head(external)
    first, second = codes[:10], codes[10:]
    torch.testing.assert_close(found["first_view"], group_contrastive_loss(first, text_codes, positive, 0.5))
    torch.testing.assert_close(found["second_view"], group_contrastive_loss(second, text_codes, positive, 0.5))
    torch.testing.assert_close(found["views"], group_contrastive_loss(first, second, positive, 0.5))


def test_duh_eg_counts_an_image_as_its_own_positive_at_any_bound() -> None:
    objective = make("duh_eg", positive=1.0)
    assert total(objective, *batch(objective)).isfinite()


def test_cibhash_draws_bits_with_their_probability() -> None:
    """Codes of one value: the share of +1 among many draws is (1 + z) / 2, and the divergence is that of the views."""
    objective = make("cibhash", beta=0.5)
    seen: list[Tensor] = []
    codes = torch.full((2000, 16), 0.6)
    codes[1000:] = -0.2
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("stages.train.methods.cibhash.nt_xent", lambda z, t: seen.append(z) or nt_xent(z[:4], t))
        found = objective.terms(codes, torch.zeros(2000, dtype=torch.long))
    [drawn] = seen
    assert set(drawn.flatten().tolist()) == {-1.0, 1.0}
    assert (drawn[:1000] > 0).double().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (drawn[1000:] > 0).double().mean().item() == pytest.approx(0.4, abs=0.02)
    p, q = torch.tensor([[0.8] * 16]), torch.tensor([[0.4] * 16])
    expected = 0.5 * (bernoulli_divergence(p, q) + bernoulli_divergence(q, p)) / 2
    torch.testing.assert_close(found["divergence"], expected)


def test_cibhash_holds_the_other_view_still() -> None:
    """The gradient of the divergence is that of its first argument alone."""
    objective = make("cibhash", beta=1.0)
    codes, rows = batch(objective)
    objective.terms(codes, rows)["divergence"].backward()
    p = ((1 + codes) / 2).detach()
    expected = torch.empty_like(p)
    for here, other in ((slice(0, 10), slice(10, 20)), (slice(10, 20), slice(0, 10))):
        a, b = p[here], p[other]
        # d KL / dp = log(p / q) - log((1 - p) / (1 - q)); a mean over 10 rows, half of it, and dp / dz = 1/2
        expected[here] = ((a / b).log() - ((1 - a) / (1 - b)).log()) / 10 / 2 / 2
    torch.testing.assert_close(codes.grad, expected, rtol=1e-4, atol=1e-6)


@each_neighbour
def test_every_entry_of_the_codes_gets_a_gradient(method: str) -> None:
    objective = make(method)
    codes, rows = batch(objective)
    total(objective, codes, rows).backward()
    assert (codes.grad != 0).any(dim=1).all()


@each_neighbour
@pytest.mark.parametrize("images", [2, 3])
def test_the_smallest_batches(method: str, images: int) -> None:
    objective = make(method)
    codes, rows = batch(objective, images)
    loss = total(objective, codes, rows)
    loss.backward()
    assert loss.isfinite()
    assert codes.grad.isfinite().all()


@each_neighbour
def test_equal_images_in_a_batch(method: str) -> None:
    objective = make(method)
    rows = torch.zeros(6 * objective.views, dtype=torch.long)
    codes = random_codes(1, 16).float().repeat(len(rows), 1).requires_grad_()
    loss = total(objective, codes, rows)
    loss.backward()
    assert loss.isfinite()
    assert codes.grad.isfinite().all()


@pytest.mark.parametrize("method", ["sdc", "duh_eg", "greedyhash", "bihalf"])
def test_the_order_of_the_batch_does_not_matter(method: str) -> None:
    """Of what the loss compares: images where all are compared, pairs where pairs are."""
    objective = make(method)
    codes, rows = batch(objective, 12)
    generator = torch.Generator().manual_seed(3)
    if method == "duh_eg":
        order = torch.randperm(12, generator=generator)
    else:  # row i goes with row i + 6, in either order
        order = torch.randperm(6, generator=generator)
        order = torch.cat([order + 6, order])
    order = torch.cat([order + 12 * view for view in range(objective.views)])
    before, after = total(objective, codes, rows), total(objective, codes[order], rows[order])
    torch.testing.assert_close(after, before)


def test_the_order_of_the_batch_does_not_matter_to_nt_xent() -> None:
    codes, order = random_codes(16), torch.randperm(8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(nt_xent(codes[torch.cat([order, order + 8])], 0.3), nt_xent(codes, 0.3))


@each_neighbour
def test_the_seed_and_the_epoch_decide_what_is_drawn(method: str) -> None:
    def losses(seed: int, epoch: int) -> list[float]:
        torch.rand(7)  # what others draw does not count
        objective = make(method, seed=seed)
        objective.begin_epoch(epoch, lambda: torch.zeros(40, 16))
        return [total(objective, *batch(objective, seed=step)).item() for step in range(3)]

    assert losses(0, 4) == losses(0, 4)
    if method == "cibhash":
        assert losses(0, 4) != losses(0, 5)
    if method in ("cibhash", "duh_eg"):  # the bits, the second head
        assert losses(0, 4) != losses(1, 4)


def test_a_batch_is_not_drawn_for_twice() -> None:
    objective = make("cibhash")
    codes, rows = batch(objective)
    assert total(objective, codes, rows).item() != total(objective, codes, rows).item()


def test_making_a_second_head_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make("duh_eg")
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@each_neighbour
def test_the_state_is_taken_back(method: str) -> None:
    trained, fresh = make(method, seed=0), make(method, seed=1)
    optimizer = torch.optim.SGD(list(trained.parameters()) or [torch.zeros(1, requires_grad=True)], lr=1.0)
    total(trained, *batch(trained)).backward()
    optimizer.step()
    fresh.restore(trained.state())
    for objective in (trained, fresh):
        objective.begin_epoch(3, lambda: torch.zeros(40, 16))
    if method != "cibhash":  # which draws by its own seed
        assert total(fresh, *batch(fresh, seed=2)).item() == total(trained, *batch(trained, seed=2)).item()
    assert sum(p.numel() for p in trained.parameters()) == (512 if method == "duh_eg" else 0)


# The stage


def write_concepts(digest: str = training_run.DIGEST, words: int = 9, dim: int = 12, left_out: int = 2) -> None:
    """Nine candidates, of which mining kept three and left out the last two."""
    texts = unit(random_codes(max(words, 1), dim, seed=9)).float().numpy()[:words]
    reasons = (["", "too rare", "too frequent"] * words)[: words - left_out] + ["label name"] * left_out
    table = pa.table({
        "concept": [f"word {i}" for i in range(words)], "reason": pa.array(reasons[:words], pa.string()),
        "text_feature": fixed_size_lists(texts),
    })  # fmt: skip
    write_table(table, CONCEPTS, Provenance("mine", digest, training_run.MODEL))


@pytest.fixture
def here(here: Path) -> Path:
    write_concepts()
    return here


def short(method: str, **changes: Any) -> Any:
    """Parameters of a short training; DUH-EG's constants are those of CLIP, too sharp for random concepts."""
    duh_eg = {**training_run.DEFAULTS["train"]["duh_eg"], "matching": 0.1, "positive": 0.9}
    return train_params(method, duh_eg=duh_eg, **changes)


def result() -> tuple[bytes, dict[str, str]]:
    return (HASHNET / "model.safetensors").read_bytes(), {
        path.name: path.read_text() for path in Path(CURVES).rglob("*.tsv")
    }


@each_neighbour
def test_training_lowers_the_loss_by_the_seed(here: Path, method: str) -> None:
    run(short(method, epochs=20))
    first = result()
    rows = first[1]["loss.tsv"].splitlines()[1:]
    losses = [float(row.split("\t")[-1]) for row in rows]
    assert len(losses) == 20
    assert np.mean(losses[-4:]) < 0.97 * np.mean(losses[:2])
    net, _ = load_hashnet()
    assert net.config.method == method
    with Features() as features:
        codes = relaxed_codes(net, torch.from_numpy(features.train()))
    assert len(torch.unique(codes >= 0, dim=0)) > 5
    torch.rand(3)
    run(short(method, epochs=20))
    assert result() == first
    run(short(method, epochs=20, seed=1))
    assert result()[0] != first[0]


@each_neighbour
def test_a_resumed_training_is_the_undisturbed_one(here: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    run(short(method))
    undisturbed = result()
    shutil.rmtree(HASHNET)
    run_interrupted(monkeypatch, short(method))
    assert not HASHNET.exists()
    torch.rand(5)
    run(short(method))
    assert result() == undisturbed


@pytest.mark.parametrize("method", ["greedyhash", "bihalf", "cibhash", "sdc"])
def test_methods_of_images_alone_read_no_text(here: Path, method: str) -> None:
    CONCEPTS.unlink()
    SIMILARITY.unlink()
    run(short(method, epochs=2))
    assert HASHNET.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (CONCEPTS.unlink, f"{CONCEPTS}: not found; rebuild it with `dvc repro mine`"),
        (lambda: write_concepts(digest="c" * 64), f"{CONCEPTS}: made with another data set"),
        (lambda: write_concepts(words=0, left_out=0), "method: 'duh_eg' needs text features of concepts"),
        (lambda: write_concepts(dim=7), f"{CONCEPTS}: has text features of 7 dimensions"),
        (lambda: CONCEPTS.write_bytes(b"PAR1"), str(CONCEPTS)),
    ],
)
def test_concepts_that_do_not_fit_are_told_in_one_line(here: Path, damage: Callable[[], None], message: str) -> None:
    damage()
    with pytest.raises(InputError) as error:
        run(short("duh_eg"))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not HASHNET.exists()


def test_duh_eg_learns_from_all_candidates_but_left_out_label_names(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(METHODS["duh_eg"], "__init__", lambda self, inputs: seen.append(inputs.concepts) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(short("duh_eg"))
    np.testing.assert_allclose(seen[0], unit(random_codes(9, 12, seed=9)).float().numpy()[:7], atol=1e-6)


def test_other_concepts_are_another_training(here: Path) -> None:
    run(short("duh_eg"))
    first = result()
    write_concepts(left_out=0)
    run(short("duh_eg"))
    assert result()[0] != first[0]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("greedyhash", "penalty", -0.1), ("bihalf", "gamma", -1.0), ("cibhash", "temperature", 0.0),
        ("cibhash", "beta", -1.0), ("sdc", "shape", 0.0), ("sdc", "floor", 1.0), ("sdc", "floor", -1.5),
        ("sdc", "temperature", 0.0), ("duh_eg", "clusters", 0), ("duh_eg", "representative", 1.5),
        ("duh_eg", "matching", 0.0), ("duh_eg", "positive", 1.5), ("duh_eg", "temperature", 0.0),
        ("duh_eg", "prompts", 7),
    ],
)  # fmt: skip
def test_bad_parameters_are_named(section: str, key: str, value: object) -> None:
    values = {**training_run.DEFAULTS["train"][section], key: value}
    with pytest.raises(InputError, match=rf"train\.{section}\.{key}"):
        train_params(**{section: values})
