"""The text features of the candidate concepts, for methods that choose among them by themselves."""

import numpy as np
import pyarrow as pa

from stages.artifacts import CONCEPTS, FEATURES, damaged
from stages.errors import InputError
from stages.features import Features
from stages.tables import read_table, unit_matrix


def read_candidates(method: str, features: Features) -> np.ndarray:
    """Text features (m, d) of all candidates of ``data/concepts.parquet``, kept or not, but for left-out label names.

    Raises:
        InputError: it is missing, damaged, made with another data set or model than `features`, or without concepts.
    """
    table, made_from, _ = read_table(CONCEPTS, {"reason": pa.string(), "text_feature": None})
    made_from.require_same(features.provenance, CONCEPTS, FEATURES)
    left_out = np.array([reason == "label name" for reason in table["reason"].to_pylist()], bool)
    texts = unit_matrix(table, "text_feature", CONCEPTS)[~left_out]
    if not len(texts):
        raise InputError(
            f"method: '{method}' needs text features of concepts, and {CONCEPTS} has none; set clip.model to the model "
            "that made the features, or concepts.vocabulary to a Parquet file with the columns concept and text_feature"
        )
    if texts.shape[1] != features.dim:
        raise damaged(CONCEPTS, f"has text features of {texts.shape[1]} dimensions, {FEATURES} has {features.dim}")
    return texts
