"""What each method minimises, and DSCH's E-step on codes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_run import train_params, write_training_inputs

from stages.components.artifact import read_components
from stages.components.mixture import fine_assignment
from stages.similarity.matrix import read_similarity
from stages.train.estep import e_step, first_components
from stages.train.losses import (
    component_loss,
    contrastive_loss,
    cosine,
    instance_loss,
    quantization_loss,
    similarity_loss,
)
from stages.train.objectives import make_objective


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_training_inputs()
    return tmp_path


def test_uhscm_weighs_its_terms(here: Path) -> None:
    options = train_params("uhscm").train
    similarity, _, _ = read_similarity()
    objective = make_objective("uhscm", options, similarity, read_components(), 0, torch.device("cpu"))
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


def test_fused_is_drawn_to_a_softer_similarity_with_the_positives_of_uhscm(here: Path) -> None:
    options, first = train_params("fused").train, read_components()
    similarity, _, _ = read_similarity()
    objective = make_objective("fused", options, similarity, first, 0, torch.device("cpu"))
    rows = torch.tensor([3, 0, 17, 40, 3])
    codes = torch.tanh(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)))
    all_codes = torch.tanh(torch.randn(41, 16, generator=torch.Generator().manual_seed(1)))
    objective.begin_epoch(0, lambda: all_codes)
    found = objective.terms(codes, rows)

    softer = similarity.factor.astype(np.float64)[rows] ** options.fused.temper
    softer /= np.linalg.norm(softer, axis=1, keepdims=True)
    low = options.fused.dissimilar
    target = torch.tensor(low + (1 - low) * softer @ softer.T, dtype=torch.float32)
    positive = torch.from_numpy(similarity.block(rows.numpy(), rows.numpy())) >= options.uhscm.positive
    parts = first_components(all_codes, first)
    code_cosine, t, weight = cosine(codes, codes), options.dsch.temperature, options.fused.weight
    expected = {
        "similarity": similarity_loss(code_cosine, target),
        "contrastive": options.fused.alpha * contrastive_loss(code_cosine, positive, options.uhscm.gamma),
        "quantization": options.uhscm.beta * quantization_loss(codes),
        "fine": weight * component_loss(codes, parts.fine_centres, parts.fine_prior, parts.fine[rows], t),
        "coarse": weight * component_loss(codes, parts.coarse_centres, parts.coarse_prior, parts.coarse[rows], t),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_dsch_weighs_its_terms(here: Path) -> None:
    options, first = train_params("dsch").train.dsch, read_components()
    objective = make_objective("dsch", train_params("dsch").train, read_similarity()[0], first, 0, torch.device("cpu"))
    rows = torch.tensor([3, 0, 17, 3, 0, 17])  # two views of three images
    codes = torch.tanh(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)))
    all_codes = torch.tanh(torch.randn(41, 16, generator=torch.Generator().manual_seed(1)))
    objective.begin_epoch(0, lambda: all_codes)
    parts, t = first_components(all_codes, first), options.temperature
    expected = {
        "instance": instance_loss(cosine(codes, codes), parts.fine[rows] @ parts.fine[rows].T, t),
        "fine": options.weight * component_loss(codes, parts.fine_centres, parts.fine_prior, parts.fine[rows], t),
        "coarse": options.weight
        * component_loss(codes, parts.coarse_centres, parts.coarse_prior, parts.coarse[rows], t),
    }
    found = objective.terms(codes, rows)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


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
    before = type(before)(**{**vars(before), "posterior": torch.tensor(posterior, dtype=torch.float32)})
    after = e_step(codes, before, seed=0)
    np.testing.assert_array_equal(after.posterior.argmax(dim=1), group)
    np.testing.assert_allclose(after.posterior.sum(dim=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(after.fine_centres, centres)
    np.testing.assert_allclose(after.fine_prior, np.bincount(group) / 41, atol=1e-3)
    assert len(after.coarse_prior) == len(before.coarse_prior)
    again = e_step(codes, before, seed=0)
    for name, value in vars(after).items():
        torch.testing.assert_close(getattr(again, name), value, rtol=0, atol=0)
