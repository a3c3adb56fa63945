"""``Searcher``: the index of a project, and what turns images and texts into queries."""

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stages.artifacts import CODES, FEATURES, HASHNET, INDEX, rebuild_hint
from stages.codes import pack, read_codes, unpack
from stages.errors import InputError
from stages.features import Features
from stages.image_files import read_image
from stages.images import MAX_PIXELS, decode
from stages.index.opened import BinaryIndex
from stages.publish import published
from stages.search.hits import Hits
from stages.search.text import Texts, text_code
from stages.search.together import Together
from stages.workers import cores

if TYPE_CHECKING:  # PyTorch, which a search by id needs not
    from stages.encoder import Encoder, Prepared

#: What a query image may be: a file, its content, or a decoded image.
Picture = str | Path | bytes | Image.Image

#: Hits by Hamming distance that are re-ranked: this many for each that is wanted, and at least so many.
CANDIDATES_PER_HIT, CANDIDATES = 10, 500

#: Queries of several threads that are encoded at a time: more gain nothing on a CPU, and all would wait for the last.
TOGETHER = 32


@dataclass(frozen=True, eq=False)
class Query:
    """What the index is asked: a packed code (bits / 8,), and a feature (d,) to re-rank with, where there is one."""

    name: str
    code: np.ndarray
    feature: np.ndarray | None


class Searcher:
    """Searches the index of a project; from several threads at once, if need be, while none changes the index.

    Every query takes ``top``, the number of hits; ``radius``, the Hamming distance in bits that they may have at most;
    and ``rerank``: the nearest candidates by Hamming distance are ordered by the cosine of their float features with
    the query's, from ``data/features.h5``; a number says how many of them. Models are loaded by the first query that
    needs them. What several threads ask for at once is encoded together.

    Attributes:
        index: the :class:`stages.index.opened.BinaryIndex`, which also adds and removes images.
    """

    def __init__(self, index: BinaryIndex, project: Path, model: Path, device: str) -> None:
        self.index, self._project, self._model, self._device = index, project, model, device
        self._path = project / INDEX
        self._loading = threading.RLock()
        # More at a time would not be faster, but a photograph that is decoded takes a hundred times its file's memory.
        self._decoding = threading.BoundedSemaphore(cores())
        self._encoded_together = Together(self._encode, TOGETHER)
        self._texts_together = Together(self._text_features, TOGETHER)

    @classmethod
    def open(cls, project: str | Path = ".", model: str | Path | None = None, device: str = "cpu") -> "Searcher":
        """Open ``data/index`` of a project.

        Args:
            model: a published network to encode images with (``python -m stages publish``), a folder or
                ``hf-hub:ORG/NAME``; None: the project's own.
            device: of the models, as the parameter ``device``.

        Raises:
            InputError: there is no index, or it is damaged.
        """
        project = Path(project)
        return cls(BinaryIndex(project / INDEX), project, project if model is None else published(model), device)

    # ---- queries

    def by_image(
        self, image: Picture, *, top: int = 20, radius: int | None = None, rerank: bool | int = False
    ) -> Hits:
        """The images nearest to one from outside: a path, the bytes of a file, or a PIL image.

        Raises:
            InputError: it is no image, too large, or a model is missing or not that of the index.
        """
        return self.by_images([image], top=top, radius=radius, rerank=rerank)

    def by_images(
        self, images: Sequence[Picture], *, top: int = 20, radius: int | None = None, rerank: bool | int = False
    ) -> Hits:
        """The images nearest to what several have in common: the mean of their relaxed codes, and of their features.

        Raises:
            InputError: as of :meth:`by_image`, or there is none.
        """
        if not images:
            raise InputError("search: no image is given")
        prepared = []
        for image in images:
            with self._decoding:
                prepared.append(self.encoder.prepare(_decoded(image)))
        features, relaxed = self._encoded_together(prepared)
        names = [str(image) if isinstance(image, str | Path) else "an image" for image in images]
        feature = None if features is None else _unit(features.mean(axis=0))
        return self._search(Query(", ".join(names), pack(relaxed.mean(axis=0)[None])[0], feature), top, radius, rerank)

    def by_id(self, image: int, *, top: int = 20, radius: int | None = None, rerank: bool | int = False) -> Hits:
        """The images nearest to one of the index, or to a query of the data set, without itself.

        Raises:
            InputError: there is no such image.
        """
        code = self.index.code_of(image)
        if code is None:
            code = self._query_code(image)
        feature = self.features_of(np.array([image]))[0] if rerank else None
        if feature is not None and np.isnan(feature).any():
            raise InputError(f"--id {image}: has no features in {self._project / FEATURES}; search without --rerank")
        return self._search(Query(f"image {image}", code, feature), top, radius, rerank, without=image)

    def by_text(self, text: str, *, top: int = 20, radius: int | None = None, rerank: bool | int = False) -> Hits:
        """The images that a text describes; with `rerank` those with the likest features, which is far more exact.

        Raises:
            InputError: the text is empty, or there is nothing that encodes it.
        """
        feature = self._texts_together(text)
        if isinstance(feature, InputError):
            raise feature
        images, relaxed = self._examples
        code = pack(text_code(feature, images, relaxed)[None])[0]
        return self._search(Query(f'"{text}"', code, feature), top, radius, rerank)

    def thumbnails(self, hits: Hits) -> list[bytes | None]:
        """A small JPEG of each hit; None for an image that came without pixels."""
        found = self.index.thumbnails(hits.ids)
        return [found[image] for image in hits.ids.tolist()]

    # ---- the search itself

    def _search(
        self, query: Query, top: int, radius: int | None, rerank: bool | int, without: int | None = None
    ) -> Hits:  # fmt: skip
        if top < 1:
            raise InputError(f"search: top is {top}; ask for at least 1 image")
        if radius is not None and not 0 <= radius <= self.index.bits:
            raise InputError(f"search: radius is {radius}; the codes have {self.index.bits} bits")
        candidates = max(CANDIDATES, CANDIDATES_PER_HIT * top) if rerank is True else int(rerank)
        wanted = max(candidates, top)
        rows, distances = self._candidates(query.code, wanted + (without is not None), radius)
        if without is not None:
            kept = self.index.ids[rows] != without
            rows, distances = rows[kept], distances[kept]
        rows, distances = rows[:wanted], distances[:wanted]
        scores = None
        if rerank:
            if query.feature is None:
                raise InputError("search: re-ranking needs features, and clip.model is null; search without it")
            scores = self.features_of(self.index.ids[rows]) @ query.feature
            order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")[:top]
            rows, distances, scores = rows[order], distances[order], scores[order]
        names, labels = self.index.names(rows), self.index.labels(rows)
        return Hits(query.name, query.code, self.index.ids[rows], distances, scores, names, labels, query.feature)

    def _candidates(self, code: np.ndarray, count: int, radius: int | None) -> tuple[np.ndarray, np.ndarray]:
        if radius is None:
            return self.index.nearest(code, count)
        rows, distances = self.index.within(code, radius)
        return rows[:count], distances[:count]

    def features_of(self, ids: np.ndarray) -> np.ndarray:
        """Features float32 (n, d) of images by id, of unit length; rows of NaN for those that have none.

        Raises:
            InputError: ``data/features.h5`` is missing, damaged, or of another data set.
        """
        features = self._features
        found = np.full((len(ids), features.dim), np.nan, np.float32)
        added = self.index.added_features(ids)
        for place, image in enumerate(ids.tolist()):
            if added.get(image) is not None:
                found[place] = _unit(np.array(added[image], np.float32))
        places = np.flatnonzero((ids < features.n_images) & ~np.isin(ids, list(added)))
        places = places[np.argsort(ids[places])]
        found[places] = features.images(ids[places])
        return found

    # ---- what threads do together

    def _encode(
        self, queries: Sequence[Sequence["Prepared"]]
    ) -> list[tuple[np.ndarray | None, np.ndarray]]:  # fmt: skip
        """Features and relaxed codes of the prepared images of each query, as of :meth:`stages.encoder.Encoder.encode`.
        """
        from stages.encoder import stacked

        features, relaxed = self.encoder.encode(*stacked([image for images in queries for image in images]))
        stops = np.cumsum([len(images) for images in queries]).tolist()
        parts = [slice(start, stop) for start, stop in itertools.pairwise([0, *stops])]
        return [(None if features is None else features[part], relaxed[part]) for part in parts]

    def _text_features(self, texts: Sequence[str]) -> list["np.ndarray | InputError"]:
        """The feature of each text, or what is wrong with it."""
        with self._loading:
            return self._texts.features(texts)

    # ---- what is loaded once

    @property
    def encoder(self) -> "Encoder":
        """The models that the codes of the index are of, loaded when they are first asked for.

        Raises:
            InputError: they are missing, damaged, or others.
        """
        with self._loading:
            return self._loaded_encoder

    @cached_property
    def _loaded_encoder(self) -> "Encoder":
        from stages.encoder import Encoder

        encoder, path = Encoder.load(self._model, self._device), self._model / HASHNET
        encoder.made_from.require_same(self.index.provenance, path, self._path)
        if encoder.made_from.params != self.index.provenance.params:
            raise InputError(
                f"{self._path}: its codes are of a network that was trained otherwise than {path}; "
                f"{rebuild_hint(self._path)}"
            )
        return encoder

    @property
    def _features(self) -> Features:
        with self._loading:
            return self._open_features

    @cached_property
    def _open_features(self) -> Features:
        features = Features(self._project / FEATURES)
        features.provenance.require_same(self.index.provenance, self._project / FEATURES, self._path)
        return features

    @cached_property
    def _texts(self) -> Texts:
        return Texts(self._project, self.index.provenance, self._path, self._device)

    @property
    def _examples(self) -> tuple[np.ndarray, np.ndarray]:
        with self._loading:
            return self._training_images

    @cached_property
    def _training_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, d) and codes (n, bits) of the training images: relaxed ones of a head; else those of the index,
        of the images that are in it.
        """
        import torch

        from stages.hashnet import HashNet, relaxed_codes

        features, net = self._features.train(), self.encoder.net
        if isinstance(net, HashNet):
            rows = torch.from_numpy(features).to(self.encoder.device)
            return features, relaxed_codes(net, rows).cpu().numpy()
        rows = self.index.rows_of(self._features.train_id)
        if (rows < 0).all():
            raise InputError(f"{self._path}: has no training image, which texts are searched by; search by image")
        return features[rows >= 0], unpack(self.index.codes()[rows[rows >= 0]]).astype(np.float32)

    def _query_code(self, image: int) -> np.ndarray:
        path = self._project / CODES
        if path.exists():
            codes = read_codes(path)
            codes.provenance.require_same(self.index.provenance, path, self._path)
            row = np.flatnonzero(codes.query_id == image)
            if len(row) and codes.provenance.params == self.index.provenance.params:
                return codes.query[row[0]]
        ids = self.index.ids
        known = f"its ids are between {ids.min()} and {ids.max()}"
        raise InputError(f"--id {image}: {self._path} has no such image; {known}")


def _decoded(image: Picture) -> Image.Image:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"search: an image of {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
        return image.convert("RGB")
    try:
        return decode(image)
    except ValueError as error:
        raise InputError(f"search: {' '.join(str(error).split())}; give the content of an image file") from None


def _unit(row: np.ndarray) -> np.ndarray:
    return row / max(float(np.linalg.norm(row)), 1e-12)
