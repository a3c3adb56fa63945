"""Find the model and write ``models/clip/``, or write there that there is none."""

from stages.artifacts import CLIP, Provenance, replacing_directory
from stages.clip import ClipConfig, write_clip_config
from stages.weights.config import Params


def run(params: Params) -> None:
    """Pin the model that `params` names.

    Raises:
        InputError: it does not exist or does not fit; OutsideError: it cannot be fetched.
    """
    clip = params.clip
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
