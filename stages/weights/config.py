"""Pin the vision-language model in models/clip/ and the backbone in models/backbone/: later runs need no network.

clip.model: an open_clip architecture, with clip.pretrained one of its tags
(ViT-B-32, laion2b_s34b_b79k) or the path of a checkpoint. Or hf-hub:ORG/NAME,
or local-dir:DIRECTORY with open_clip_config.json and the weights; then set
clip.pretrained: null. The default, scenes-clip with embedded, ships with the
package and fetches nothing. HF_ENDPOINT names a mirror of the hub.

Of dataset.name: embeddings it is the model that made them, for its text side;
clip.model: null and clip.pretrained: null where that is not at hand.

backbone.model, for train.network: backbone: vgg19 or alexnet of torchvision,
timm/NAME, or clip, the image tower of models/clip. backbone.weights: imagenet
(those that are published with the model) or the path of a .pth or .safetensors
file; clip with clip; or null: random.
"""

from pydantic import field_validator, model_validator

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


class Backbone(Frozen):
    """Section ``backbone``.

    Attributes:
        model: ``vgg19``, ``alexnet``, ``timm/NAME`` or ``clip``; null for none.
        weights: ``imagenet`` or a checkpoint file, of ``clip`` ``clip``; null for random ones.
    """

    model: str | None
    weights: str | None

    @field_validator("model")
    @classmethod
    def _known(cls, model: str | None) -> str | None:
        if model in (None, "vgg19", "alexnet", "clip") or (model.startswith("timm/") and model != "timm/"):
            return model
        raise ValueError("must be vgg19, alexnet, clip, timm/NAME or null")

    @model_validator(mode="after")
    def _weights_of_the_model(self) -> "Backbone":
        if self.model is None and self.weights is not None:
            raise ValueError(f"weights is {self.weights!r} beside model: null; name a model or set both to null")
        if self.weights is not None and (self.model == "clip") != (self.weights == "clip"):
            raise ValueError(f"weights '{self.weights}' are not those of model '{self.model}'")
        return self


class Params(Frozen):
    """What the ``weights`` stage reads."""

    clip: Clip
    backbone: Backbone
