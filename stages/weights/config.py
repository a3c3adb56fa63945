"""Pin the vision-language model in models/clip/: later runs need no network.

clip.model: an open_clip architecture, with clip.pretrained one of its tags
(ViT-B-32, laion2b_s34b_b79k) or the path of a checkpoint. Or hf-hub:ORG/NAME,
or local-dir:DIRECTORY with open_clip_config.json and the weights; then set
clip.pretrained: null. The default, scenes-clip with embedded, ships with the
package and fetches nothing. HF_ENDPOINT names a mirror of the hub.

Of dataset.name: embeddings it is the model that made them, for its text side;
clip.model: null and clip.pretrained: null where that is not at hand.
"""

from pydantic import model_validator

from stages.params import Frozen


class Clip(Frozen):
    """Section ``clip``.

    Attributes:
        model: architecture, ``hf-hub:ORG/NAME`` or ``local-dir:DIRECTORY``; null for embeddings without a text side.
        pretrained: tag or checkpoint file; null where `model` names the weights too, or is null.
    """

    model: str | None
    pretrained: str | None

    @model_validator(mode="after")
    def _weights_of_a_model(self) -> "Clip":
        if self.model is None and self.pretrained is not None:
            raise ValueError(f"pretrained is {self.pretrained!r} beside model: null; set both to null")
        return self


class Params(Frozen):
    """What the ``weights`` stage reads."""

    clip: Clip
