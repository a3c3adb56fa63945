"""DUH-EG: codes of images and of what a bank of nouns says of them, learnt together."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn

from stages.device import derived_seed
from stages.hashnet import HashNet, HashNetConfig
from stages.train.losses import cosine
from stages.train.methods.objective import Inputs, Objective, Terms
from stages.train.streamed import Rows

#: Images matched to the nouns at a time, so that memory does not grow with their number.
CHUNK = 8192


def noun_bank(texts: np.ndarray, clusters: int, representative: float, seed: int) -> np.ndarray:
    """Which nouns represent a vocabulary: row numbers (k,), ascending.

    Of nouns with equal features the first stays. The others are clustered by k-means into at most `clusters`; a noun is
    kept whose cosine to its cluster's centre is above `representative`, and of every cluster the nearest one.

    Args:
        texts: (m, d) text features, unit rows.
    """
    _, distinct = np.unique(texts, axis=0, return_index=True)
    distinct.sort()
    rows = texts[distinct].astype(np.float64)
    model = KMeans(min(clusters, len(rows)), n_init=1, random_state=seed).fit(rows)
    centres = model.cluster_centers_ / np.maximum(np.linalg.norm(model.cluster_centers_, axis=1, keepdims=True), 1e-12)
    similarity = np.einsum("nd,nd->n", rows, centres[model.labels_])
    kept = similarity > representative
    by_similarity = np.argsort(-similarity, kind="stable")
    _, first = np.unique(model.labels_[by_similarity], return_index=True)
    kept[by_similarity[first]] = True
    return distinct[kept]


def external_features(features: Tensor, nouns: Tensor, temperature: float) -> Tensor:
    """The mean noun of each image, weighted by softmax(cosine / temperature): (n, d) unit rows.

    Args:
        features: (n, d) of images, unit rows; nouns: (k, d), unit rows.
    """
    weights = ((part @ nouns.T / temperature).softmax(dim=1) for part in features.split(CHUNK))
    return F.normalize(torch.cat([part @ nouns for part in weights]), dim=1)


class MatchedRows:
    """External features, of it as of a tensor (n, d): computed when they are asked for, of images that are streamed."""

    def __init__(self, features: Rows, nouns: Tensor, temperature: float) -> None:
        self.features, self.nouns, self.temperature = features, nouns, temperature

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return external_features(self.features[rows], self.nouns, self.temperature)


def group_contrastive_loss(a: Tensor, b: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Mean over rows i of -log of the share of positives j in sum_j exp(cos(a_i, b_j) / temperature), in log space.

    Args:
        a, b: (n, K) codes; positive: bool (n, n), at least one in each row.
    """
    logits = cosine(a, b) / temperature
    return (logits.logsumexp(dim=1) - logits.masked_fill(~positive, -torch.inf).logsumexp(dim=1)).mean()


class DuhEg(Objective):
    """Codes of two views agree with each other and with those of the image's external features, in groups.

    Source: DUH-EG (Song et al., ICML 2025), in the form of its released code: nouns that represent the vocabulary,
    images matched to them, a second head of the same form for the external features, and three contrastive terms (each
    view with the external codes, the two views), in which images with external features of cosine above 0.97 are
    positives of one another. The contrast runs over the second argument's rows.

    The released code computes the nearest noun of each cluster and then does not use it; here it is in the bank, so
    that no cluster is without a noun. Its vocabulary is WordNet's nouns with seven prompts, and its constants go with
    CLIP ViT-B/16; here the vocabulary and prompts are those of ``concepts``, all candidates, kept or not, but for
    names of classes that were left out. A vocabulary of no more words than clusters is the bank as it is.
    """

    views = 2
    needs_concepts = True

    def __init__(self, inputs: Inputs) -> None:
        self.options = inputs.options.duh_eg
        device, dim = inputs.features.device, inputs.features.shape[1]
        bank = inputs.ranks.first(
            lambda: noun_bank(inputs.concepts, self.options.clusters, self.options.representative, inputs.seed)
        )
        nouns = torch.from_numpy(inputs.concepts[bank]).to(device)
        matched = MatchedRows(inputs.features, nouns, self.options.matching)
        self.external = matched[slice(None)] if isinstance(inputs.features, Tensor) else matched
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(inputs.seed, 0))
            self.head = HashNet(HashNetConfig(dim, inputs.options.hidden, inputs.bits, "duh_eg")).to(device).train()

    def terms(self, codes: Tensor, rows: Tensor) -> Terms:
        first, second = codes.chunk(2)
        external = self.external[rows[: len(first)]]
        positive = (external @ external.T > self.options.positive).fill_diagonal_(True)
        external_codes, t = self.head(external), self.options.temperature
        return {
            "first_view": group_contrastive_loss(first, external_codes, positive, t),
            "second_view": group_contrastive_loss(second, external_codes, positive, t),
            "views": group_contrastive_loss(first, second, positive, t),
        }

    def parameters(self) -> Iterable[nn.Parameter]:
        return self.head.parameters()

    def state(self) -> dict[str, Any]:
        return self.head.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state)
