"""The golden vectors of both papers' formulas: 1e-6 in double precision, 1e-4 in single precision."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.components.density import Mixture
from stages.components.mixture import (
    coarse_assignment,
    coarse_level,
    fine_assignment,
    responsibilities,
    sign,
)
from stages.mine.concepts import concept_distribution, concept_frequency, concept_scores, denoise, mine_distribution
from stages.similarity.matrix import similarity_matrix
from stages.train.losses import (
    component_loss,
    contrastive_loss,
    cosine,
    instance_loss,
    quantization_loss,
    similarity_loss,
)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden vectors are not here")
precisions = pytest.mark.parametrize(("kind", "tolerance"), [(np.float64, 1e-6), (np.float32, 1e-4)])


class Golden:
    """One file of golden vectors, its real numbers in a precision."""

    def __init__(self, name: str, kind: type) -> None:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            self.exact = dict(arrays)
        self.kind = kind

    def __getitem__(self, name: str) -> np.ndarray:
        """An input, in the precision under test."""
        value = self.exact[name]
        return value.astype(self.kind) if value.dtype == np.float64 else value

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self[name])

    def check(self, name: str, found: np.ndarray | torch.Tensor | float, tolerance: float) -> None:
        """Compare with an expected output in full precision, absolute and relative."""
        np.testing.assert_allclose(np.asarray(found, np.float64), self.exact[name], tolerance, tolerance, err_msg=name)


@precisions
def test_concepts(kind: type, tolerance: float) -> None:
    golden = Golden("uhscm_concepts", kind)
    images, texts, tau = golden["image_features"], golden["text_features"], float(golden["tau"])
    frequency = concept_frequency(images, texts)
    np.testing.assert_array_equal(frequency, golden["frequency"])
    kept, reasons = denoise(frequency, len(images), 0.5, 0.5)
    np.testing.assert_array_equal(kept, golden["kept"])
    assert [not reason for reason in reasons] == kept.tolist()
    distribution = concept_distribution(concept_scores(images, texts[kept]), tau)
    assert distribution.dtype == kind
    golden.check("distribution", distribution, tolerance)
    golden.check("distribution", mine_distribution(images, texts[kept], tau), 1e-4)  # stored in single precision


@precisions
def test_similarity(kind: type, tolerance: float) -> None:
    golden = Golden("uhscm_concepts", kind)
    for form in ("cosine", "signed"):
        block = similarity_matrix(golden["distribution"], form).block(slice(None))
        assert block.dtype == kind
        golden.check(f"similarity_{form}", block, tolerance)


@precisions
def test_uhscm_loss(kind: type, tolerance: float) -> None:
    golden = Golden("uhscm_loss", kind)
    codes, similarity = golden.tensor("z"), golden.tensor("similarity")
    code_cosine = cosine(codes, codes)
    terms = {
        "similarity_loss": similarity_loss(code_cosine, similarity),
        "contrastive_loss": contrastive_loss(
            code_cosine, similarity >= float(golden["lambda_"]), float(golden["gamma"])
        ),
        "quantization_loss": quantization_loss(codes),
    }
    for name, value in terms.items():
        assert value.dtype == codes.dtype
        golden.check(name, value, tolerance)
    similarity, contrastive, quantization = terms.values()
    total = similarity + float(golden["alpha"]) * contrastive + float(golden["beta"]) * quantization
    golden.check("total", total, tolerance)


@precisions
def test_e_step(kind: type, tolerance: float) -> None:
    golden = Golden("dsch_estep", kind)
    mixture = Mixture(golden["weights"], golden["means"], golden["variances"])
    posterior, log_likelihood = responsibilities(golden["codes"], mixture)
    golden.check("responsibilities", posterior, tolerance)
    golden.check("log_likelihood", log_likelihood, tolerance)
    fine = fine_assignment(posterior)
    golden.check("fine_assignment", fine, tolerance)
    golden.check("instance_similarity", fine @ fine.T, tolerance)
    labels, n_coarse = golden["coarse_labels"], len(golden["coarse_centres"])
    golden.check("coarse_assignment", coarse_assignment(fine, labels, n_coarse), tolerance)
    golden.check("fine_centres", sign(mixture.means), 0)
    centres = np.stack([mixture.means[labels == label].mean(axis=0) for label in range(n_coarse)])
    golden.check("coarse_centres", sign(centres), 0)
    golden.check("inertia", ((mixture.means - centres[labels]) ** 2).sum(), tolerance)


def test_the_coarse_level_is_as_good_as_the_golden_one() -> None:
    golden = Golden("dsch_estep", np.float64)
    means = golden["means"]
    hierarchy = coarse_level(means, len(golden["coarse_centres"]), seed=0)
    inertia = ((means - hierarchy.centres[hierarchy.labels]) ** 2).sum()
    assert inertia <= golden["inertia"] * (1 + 1e-6)


@precisions
def test_dsch_loss(kind: type, tolerance: float) -> None:
    golden = Golden("dsch_loss", kind)
    codes = torch.cat([golden.tensor("view1"), golden.tensor("view2")])
    temperature = float(golden["temperature"])
    similarity = golden.tensor("instance_similarity").repeat(2, 2)
    golden.check("instance_loss", instance_loss(cosine(codes, codes), similarity, temperature), tolerance)
    fine, coarse = (golden.tensor(f"{level}_assignment").repeat(2, 1) for level in ("fine", "coarse"))
    fine_loss = component_loss(codes, golden.tensor("fine_centres"), golden.tensor("fine_prior"), fine, temperature)
    golden.check("fine_loss", fine_loss, tolerance)
    centres = golden.tensor("coarse_centres")
    prior = torch.full((len(centres),), 1 / len(centres), dtype=codes.dtype)
    golden.check("coarse_loss", component_loss(codes, centres, prior, coarse, temperature), tolerance)
