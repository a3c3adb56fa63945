"""``data/components.h5``, read and checked."""

from dataclasses import dataclass
from functools import cached_property

import h5py
import numpy as np
from pydantic import ValidationError

from stages.artifacts import COMPONENTS, PROVENANCE_KEY, Provenance, damaged, rebuild_hint
from stages.components.config import Components as Options
from stages.errors import InputError
from stages.hdf5 import read_text

#: How far single precision may take a share from what it is, and a sum of shares from 1.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Components:
    """Fine components, their coarse labels, and who belongs to them.

    Attributes:
        weights: (m1,); coarse_labels: int32 (m1,).
        top_index, top_value: (n_train, r) the largest responsibilities for a training image, as component and value.
        train_id: (n_train,) image ids.
    """

    weights: np.ndarray
    coarse_labels: np.ndarray
    top_index: np.ndarray
    top_value: np.ndarray
    train_id: np.ndarray
    provenance: Provenance

    @cached_property
    def posterior(self) -> np.ndarray:
        """Responsibilities (n_train, m1) float32: the largest ones of each image, scaled to sum 1."""
        dense = np.zeros((len(self.top_index), len(self.weights)), np.float32)
        np.put_along_axis(dense, self.top_index, self.top_value, axis=1)
        return dense / dense.sum(axis=1, keepdims=True)

    @cached_property
    def options(self) -> Options:
        """The section ``components`` that they were made with.

        Raises:
            InputError: the file does not say.
        """
        try:
            return Options(**{key: value for key, value in self.provenance.params.items() if key != "seed"})
        except ValidationError:
            raise damaged(COMPONENTS, "does not say how its components were made") from None


def read_components() -> Components:
    """Read ``data/components.h5``.

    Raises:
        InputError: it is missing, unreadable or of another schema.
    """
    if not COMPONENTS.exists():
        raise InputError(f"{COMPONENTS}: not found; {rebuild_hint(COMPONENTS)}")
    try:
        with h5py.File(COMPONENTS) as file:
            components = Components(
                *(file[name][:] for name in (
                    "weights", "coarse_labels", "responsibilities/index", "responsibilities/value", "train/id",
                )),
                provenance=Provenance.from_json(read_text(file, PROVENANCE_KEY), COMPONENTS),
            )  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise damaged(COMPONENTS, error) from None
    _require_sound(components)
    return components


def _require_sound(components: Components) -> None:
    m1, index, value = len(components.weights), components.top_index, components.top_value
    if components.coarse_labels.shape != (m1,) or index.shape != value.shape or len(index) != len(components.train_id):
        raise damaged(COMPONENTS, "has weights, coarse labels, responsibilities and ids of shapes that do not fit")
    if index.size and not (index.min() >= 0 and index.max() < m1 and _are_shares(value)):
        raise damaged(COMPONENTS, "has responsibilities of components that do not exist, or outside of [0, 1]")
    if not (_are_shares(components.weights) and np.isclose(components.weights.sum(dtype=np.float64), 1, atol=ROUNDING)):
        raise damaged(COMPONENTS, "has weights that are not those of a mixture")


def _are_shares(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 1 + ROUNDING)).all())
