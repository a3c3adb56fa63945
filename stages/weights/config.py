"""Pin the vision-language model in models/clip/: later runs need no network.

clip.model: an open_clip architecture, with clip.pretrained one of its tags
(ViT-B-32, laion2b_s34b_b79k) or the path of a checkpoint. Or hf-hub:ORG/NAME,
or local-dir:DIRECTORY with open_clip_config.json and the weights; then set
clip.pretrained: null. The default, scenes-clip with embedded, ships with the
package and fetches nothing. HF_ENDPOINT names a mirror of the hub.
"""

from stages.params import Frozen


class Clip(Frozen):
    """Section ``clip``.

    Attributes:
        model: architecture, ``hf-hub:ORG/NAME`` or ``local-dir:DIRECTORY``.
        pretrained: tag or checkpoint file; null where `model` names the weights too.
    """

    model: str
    pretrained: str | None


class Params(Frozen):
    """What the ``weights`` stage reads."""

    clip: Clip
