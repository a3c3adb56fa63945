"""What each method minimises, and DSCH's E-step on codes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_run import run_components, train_params

from stages.components.artifact import read_components
from stages.components.mixture import fine_assignment
from stages.features import Features
from stages.mine.distribution import read_distribution
from stages.similarity.matrix import SimilarityMatrix, read_similarity
from stages.train.codebook import Codebook
from stages.train.config import Train
from stages.train.estep import e_step, first_components
from stages.train.losses import (
    component_loss,
    contrastive_loss,
    cosine,
    instance_loss,
    quantization_loss,
    similarity_loss,
)
from stages.train.methods.objective import Inputs, Objective
from stages.train.methods.registry import METHODS
from stages.train.semantics import SharedComponents, SharedConcepts


def make(method: str, options: Train, **changes: Any) -> Objective:
    with Features() as features:
        images = torch.from_numpy(features.train())
    inputs = Inputs(images, read_components(), read_similarity()[0], options, bits=16, seed=0)
    return METHODS[method](replace(inputs, **changes))


def with_dsch(**changes: Any) -> Train:
    """The section ``train`` with `changes` of its section ``dsch``."""
    train = train_params("dsch").train
    return train.model_copy(update={"dsch": train.dsch.model_copy(update=changes)})


def test_uhscm_weighs_its_terms(here: Path) -> None:
    options = train_params("uhscm").train
    similarity, _, _ = read_similarity()
    objective = make("uhscm", options)
    rows = torch.tensor([3, 0, 17, 40, 3])
    codes = torch.tanh(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)))
    target = torch.from_numpy(similarity.block(rows.numpy(), rows.numpy()))
    constants = options.uhscm
    expected = {
        "similarity": similarity_loss(cosine(codes, codes), target),
        "contrastive": constants.alpha
        * contrastive_loss(cosine(codes, codes), target >= constants.positive, constants.gamma),
        "quantization": constants.beta * quantization_loss(codes),
    }
    found = objective.terms(codes, rows)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("has_concepts", [True, False])
def test_fused_learns_the_codes_of_its_codebook(here: Path, has_concepts: bool) -> None:
    """Of shared concepts, and of shared components where there are no concepts; it needs no similarity."""
    options = train_params("fused", fused={"presence": 0.6, "components": 3}).train
    with Features() as features:
        images, distribution = features.train(), read_distribution(features)[0] if has_concepts else None
    objective = make("fused", options, similarity=None, distribution=distribution)
    if has_concepts:
        semantics = SharedConcepts(images, distribution, presence=0.6, seed=0)
    else:
        semantics = SharedComponents(images, components=3, seed=0)
    rows = torch.tensor([3, 0, 17, 40, 3])
    codes = torch.tanh(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)))
    target = Codebook(semantics, images, 16, seed=0).encode(images)[rows]
    probability = (1 + codes.double().numpy()) / 2
    sure = 1.0 if has_concepts else 0.9  # labels smoothed by 0.2
    right, wrong = (np.where(target * sign > 0, probability, 1 - probability) for sign in (1, -1))
    expected = -(sure * np.log(right) + (1 - sure) * np.log(wrong)).mean()
    assert objective.dropout == (0.0 if has_concepts else 0.7)
    assert objective.terms(codes, rows).keys() == {"bits"}
    assert objective.terms(codes, rows)["bits"].item() == pytest.approx(expected, rel=1e-5)
    decided = torch.from_numpy(target)
    least = (1 - sure) * -np.log(1e-5) + 1e-4  # decided bits are kept off certainty by that margin
    assert objective.terms(decided, rows)["bits"] < least < 10 < objective.terms(-decided, rows)["bits"]


@pytest.mark.parametrize("changes", [{"presence": 1.5}, {"components": 2}])
def test_parameters_and_seed_of_fused_change_its_codes(here: Path, changes: dict[str, float]) -> None:
    """Each parameter where it is read: the presence with concepts, the components without."""
    train, found = train_params("fused").train, []
    with Features() as features:
        distribution = read_distribution(features)[0] if "presence" in changes else None
    other = train.model_copy(update={"fused": train.fused.model_copy(update=changes)})
    for options, seed in ((train, 0), (train, 0), (other, 0), (train, 1)):
        found.append(make("fused", options, distribution=distribution, seed=seed).target)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])


def test_dsch_weighs_its_terms(here: Path) -> None:
    first, train = read_components(), with_dsch(instance=3.0, fine=0.5, coarse=0.25)
    objective, options = make("dsch", train), train.dsch
    rows = torch.tensor([3, 0, 17, 3, 0, 17])  # two views of three images
    codes = torch.tanh(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)))
    all_codes = torch.tanh(torch.randn(41, 16, generator=torch.Generator().manual_seed(1)))
    objective.begin_epoch(0, lambda: all_codes)
    parts, t = first_components(all_codes, first), options.temperature
    expected = {
        "instance": 3.0 * instance_loss(cosine(codes, codes), parts.fine[rows] @ parts.fine[rows].T, t),
        "fine": 0.5 * component_loss(codes, parts.fine_centres, parts.fine_prior, parts.fine[rows], t),
        "coarse": 0.25 * component_loss(codes, parts.coarse_centres, parts.coarse_prior, parts.coarse[rows], t),
    }
    found = objective.terms(codes, rows)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_dsch_keeps_the_components_of_the_features_for_its_first_rounds(here: Path) -> None:
    """Rounds of two epochs, two of them warm-up: new centres at epochs 0 and 2, E-steps on the codes at 4 and 6."""
    first, objective = read_components(), make("dsch", with_dsch(round=2, warmup=2))
    expected = None
    for epoch in range(8):
        codes = torch.tanh(torch.randn(41, 16, generator=torch.Generator().manual_seed(epoch)))
        objective.begin_epoch(epoch, lambda codes=codes: codes)
        if epoch in (0, 2):
            expected = first_components(codes, first)
        elif epoch in (4, 6):
            expected = e_step(codes, expected, first.options, seed=0)
        for name, value in vars(expected).items():
            torch.testing.assert_close(getattr(objective.components, name), value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("term", ["instance", "fine", "coarse"])
def test_without_a_term_of_dsch_the_codes_do_not_follow_it(here: Path, term: str) -> None:
    """Weight 0: an ablation of the paper."""
    objective = make("dsch", with_dsch(**{term: 0.0}))
    all_codes = torch.tanh(torch.randn(41, 16, generator=torch.Generator().manual_seed(1)))
    objective.begin_epoch(0, lambda: all_codes)
    codes = torch.tanh(torch.randn(6, 16, generator=torch.Generator().manual_seed(0))).requires_grad_()
    found = objective.terms(codes, torch.tensor([3, 0, 17, 3, 0, 17]))
    assert [name for name, value in found.items() if value.item() == 0] == [term]
    for name, value in found.items():
        (gradient,) = torch.autograd.grad(value, codes, retain_graph=True)
        assert gradient.isfinite().all() and (gradient.abs().max().item() == 0) == (name == term)


def test_without_the_contrastive_term_of_uhscm_the_codes_do_not_follow_it(here: Path) -> None:
    train = train_params("uhscm").train
    objective = make("uhscm", train.model_copy(update={"uhscm": train.uhscm.model_copy(update={"alpha": 0.0})}))
    codes = torch.tanh(torch.randn(5, 16, generator=torch.Generator().manual_seed(0))).requires_grad_()
    found = objective.terms(codes, torch.tensor([3, 0, 17, 40, 3]))
    assert found["contrastive"].item() == 0 != found["similarity"].item()
    (gradient,) = torch.autograd.grad(found["contrastive"], codes)
    assert gradient.abs().max().item() == 0


@pytest.mark.parametrize("method", ["uhscm", "dsch"])
def test_the_order_of_a_batch_is_no_matter(here: Path, method: str) -> None:
    """The same terms, and the same gradient for each image, however the batch is shuffled."""
    objective = make(method, train_params(method).train)
    all_codes = torch.tanh(torch.randn(41, 16, generator=torch.Generator().manual_seed(1)))
    objective.begin_epoch(0, lambda: all_codes)
    rows = torch.tensor([3, 0, 17, 40, 9, 22]).repeat(objective.views)
    codes = torch.tanh(torch.randn(len(rows), 16, generator=torch.Generator().manual_seed(0))).double()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(2))
    terms, gradients = [], []
    for chosen in (torch.arange(len(rows)), order):
        batch = codes[chosen].float().requires_grad_()
        found = objective.terms(batch, rows[chosen])
        (gradient,) = torch.autograd.grad(sum(found.values()), batch)
        terms.append(found)
        gradients.append(torch.empty_like(gradient).index_copy_(0, chosen, gradient))
    torch.testing.assert_close(terms[0], terms[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("method", ["uhscm", "dsch"])
@pytest.mark.parametrize("components", [{"fine": 1, "coarse": 1}, {"mixture": "kmeans", "assignment": "hard"}])
def test_one_concept_or_one_component_is_no_trouble(here: Path, method: str, components: dict[str, Any]) -> None:
    """Every pair is as alike as can be, every image in the one component; and all images equal besides."""
    run_components(**components)
    one = SimilarityMatrix(np.ones((41, 1), np.float32), 2.0, -1.0)
    objective = make(method, train_params(method).train, similarity=one)
    row = torch.tanh(torch.randn(1, 16, generator=torch.Generator().manual_seed(0)))
    for all_codes in (torch.tanh(torch.randn(41, 16, generator=torch.Generator().manual_seed(1))), row.expand(41, 16)):
        for epoch in range(10):
            objective.begin_epoch(epoch, lambda codes=all_codes: codes)
        rows = torch.tensor([3, 0, 17]).repeat(objective.views)
        codes = all_codes[rows].clone().requires_grad_()
        loss = sum(objective.terms(codes, rows).values())
        (gradient,) = torch.autograd.grad(loss, codes)
        assert loss.isfinite() and gradient.isfinite().all()


def test_the_components_of_the_features_are_placed_among_the_codes(here: Path) -> None:
    first = read_components()
    np.testing.assert_allclose(first.posterior.sum(axis=1), 1, rtol=1e-5)
    assert first.posterior.shape == (41, 6)
    codes = torch.tanh(torch.randn(41, 16, generator=torch.Generator().manual_seed(0)))
    parts = first_components(codes, first)
    means = first.posterior.T @ codes.numpy() / first.posterior.sum(axis=0)[:, None]
    np.testing.assert_array_equal(parts.fine_centres, np.where(means >= 0, 1, -1))
    np.testing.assert_allclose(parts.fine, fine_assignment(first.posterior), atol=1e-6)
    np.testing.assert_allclose(parts.fine_prior, first.posterior.mean(axis=0), atol=1e-6)
    assert parts.coarse.shape == (41, len(parts.coarse_centres))
    assert parts.coarse_prior.sum() == pytest.approx(1)
    assert set(parts.coarse_centres.unique().tolist()) <= {-1, 1}


def test_the_e_step_finds_the_clusters_of_the_codes(here: Path) -> None:
    """Codes in six tight groups, and a start that knows nothing of the last change of each."""
    rng = np.random.default_rng(0)
    centres = rng.choice([-1.0, 1.0], (6, 16))
    group = np.arange(41) % 6
    codes = torch.tensor(0.8 * centres[group] + 0.05 * rng.standard_normal((41, 16)), dtype=torch.float32)
    before = first_components(codes, read_components())
    posterior = np.full((41, 6), 0.1)
    posterior[np.arange(41), group] = 0.5
    fine = torch.tensor(fine_assignment(posterior), dtype=torch.float32)
    before = type(before)(**{**vars(before), "fine": fine})
    torch.testing.assert_close(before.posterior, torch.tensor(posterior / posterior.sum(axis=1, keepdims=True)).float())
    options = read_components().options
    after = e_step(codes, before, options, seed=0)
    np.testing.assert_array_equal(after.posterior.argmax(dim=1), group)
    np.testing.assert_allclose(after.posterior.sum(dim=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(after.fine_centres, centres)
    np.testing.assert_allclose(after.fine_prior, np.bincount(group) / 41, atol=1e-3)
    assert len(after.coarse_prior) == len(before.coarse_prior)
    again = e_step(codes, before, options, seed=0)
    for name, value in vars(after).items():
        torch.testing.assert_close(getattr(again, name), value, rtol=0, atol=0)


@pytest.mark.parametrize("mixture", ["gaussian", "kmeans"])
@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_the_e_step_on_codes_is_of_the_kind_of_the_first(here: Path, mixture: str, assignment: str) -> None:
    run_components(mixture=mixture, assignment=assignment)
    codes = torch.tanh(0.3 * torch.randn(41, 16, generator=torch.Generator().manual_seed(0)))
    first = read_components()
    after = e_step(codes, first_components(codes, first), first.options, seed=0)
    one_hot = ((after.posterior == 0) | (after.posterior == 1)).all().item()
    assert one_hot == (assignment == "hard")
    equal_weights = torch.allclose(after.fine_prior, torch.full((6,), 1 / 6))
    assert equal_weights == (mixture == "kmeans")
    torch.testing.assert_close(after.posterior.sum(dim=1), torch.ones(41))
