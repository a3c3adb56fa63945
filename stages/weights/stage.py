"""Find the models and write ``models/clip/`` and ``models/backbone/``, or write there that there is none."""

from stages.artifacts import BACKBONE, CLIP, Provenance, replacing_directory
from stages.clip import ClipConfig, write_clip_config
from stages.pinned_backbone import PinnedBackbone, write_pinned_backbone
from stages.weights.config import Backbone, Clip, Params


def run(params: Params) -> None:
    """Pin the models that `params` names.

    Raises:
        InputError: one does not exist or does not fit; OutsideError: it cannot be fetched.
    """
    pin_clip(params.clip)
    pin_backbone(params.backbone)


def pin_clip(clip: Clip) -> None:
    """Write ``models/clip/``."""
    if clip.model is None:
        with replacing_directory(CLIP) as directory:
            write_clip_config(directory, ClipConfig(
                model=None, pretrained=None, source="", source_sha256="", sha256="", quick_gelu=False, dim=0,
                provenance=Provenance("weights", params=clip.model_dump()),
            ))  # fmt: skip
        return
    from stages.weights import pinning, source  # with PyTorch and open_clip, which nothing above needs

    found = source.find(clip.model, clip.pretrained)
    with replacing_directory(CLIP) as directory:
        pinning.pin(found, clip, directory)


def pin_backbone(backbone: Backbone) -> None:
    """Write ``models/backbone/``; of ``clip`` from ``models/clip/``."""
    with replacing_directory(BACKBONE) as directory:
        if backbone.model is None:
            write_pinned_backbone(directory, PinnedBackbone(
                model=None, weights=None, source="", source_sha256="", sha256="", dim=0, image_size=0, fixed_size=False,
                mean=(), std=(), tower=None, provenance=Provenance("weights", params=backbone.model_dump()),
            ))  # fmt: skip
            return
        from stages.weights import backbone_pinning

        backbone_pinning.pin(backbone, directory)
