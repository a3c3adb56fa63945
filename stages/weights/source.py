"""Where the architecture, the weights and the preprocessing of ``clip.model`` and ``clip.pretrained`` come from."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_models_by_tag
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from stages import hub
from stages.errors import InputError
from stages.weights import checkpoint

#: The model that ships with the package: an architecture with one tag.
EMBEDDED_MODEL, EMBEDDED_TAG = "scenes-clip", "embedded"
EMBEDDED = Path(__file__).parents[1] / "scenes" / "clip"

HUB, LOCAL = "hf-hub:", "local-dir:"
CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class Source:
    """One model, all of it on this machine.

    Attributes:
        model_cfg: open_clip's architecture; `preprocess_cfg`: its preprocessing.
        weights: the checkpoint file.
        origin: where that came from.
        tokenizer: files of a tokenizer that is not open_clip's own; mostly empty.
    """

    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    weights: Path
    origin: str
    tokenizer: tuple[Path, ...] = ()


def find(model: str, pretrained: str | None) -> Source:
    """Find (and fetch, where it is not on this machine) the model that `model` and `pretrained` name.

    Raises:
        InputError: there is no such model, tag or file, or they do not belong together.
        OutsideError: the hub does not give it.
    """
    if model.startswith((HUB, LOCAL)):
        if pretrained is not None:
            raise InputError(f"clip.pretrained: {pretrained!r} beside {model}, which names its own weights; set null")
        return _from_hub(model.removeprefix(HUB)) if model.startswith(HUB) else _from_directory(model)
    model_cfg = _architecture(model)
    if pretrained is None:
        raise InputError(f"clip.pretrained: null would leave {model} without weights; {_choices(model)}")
    if model == EMBEDDED_MODEL and pretrained == EMBEDDED_TAG:
        weights = EMBEDDED / f"{EMBEDDED_MODEL}.safetensors"
        return Source(model_cfg, asdict(PreprocessCfg()), weights, f"embedded {weights.name}")
    tag = get_pretrained_cfg(model, pretrained)
    if tag:
        return _from_tag(model, pretrained, model_cfg, tag)
    path = Path(pretrained).expanduser()
    if path.suffix in checkpoint.SUFFIXES or path.exists() or path.name != pretrained:
        return Source(model_cfg, _preprocessing(model), path, str(path))
    raise InputError(f"clip.pretrained: {pretrained!r} is no tag of {model} and no file; {_choices(model, pretrained)}")


def _architecture(model: str) -> dict[str, Any]:
    if model == EMBEDDED_MODEL:
        return _read_config(EMBEDDED / f"{EMBEDDED_MODEL}.json")
    config = open_clip.get_model_config(model)
    if config is None:
        near = _near(model, [*open_clip.list_models(), EMBEDDED_MODEL])
        raise InputError(
            f"clip.model: {model!r} is no architecture of open_clip {open_clip.__version__}"
            + (f"; did you mean {' or '.join(near)}?" if near else "; `open_clip.list_models()` has their names")
        )
    if "hf_model_name" in config["text_cfg"]:
        raise _foreign_text_tower(model)
    return config


def _from_tag(model: str, tag: str, model_cfg: dict[str, Any], tag_cfg: dict[str, Any]) -> Source:
    ours, theirs = bool(model_cfg.get("quick_gelu")), bool(tag_cfg.get("quick_gelu"))
    if ours != theirs:
        # open_clip only warns, and the features are silently wrong.
        right = [
            name for name in list_pretrained_models_by_tag(tag)
            if name.removesuffix("-quickgelu") == model.removesuffix("-quickgelu")
            and bool((open_clip.get_model_config(name) or {}).get("quick_gelu")) == theirs
        ]  # fmt: skip
        raise InputError(
            f"clip.model: {model} computes with {_activation(ours)}, but {tag} was trained with {_activation(theirs)}; "
            + (f"set clip.model: {right[0]}" if right else "take another tag")
        )
    repository, _, name = tag_cfg["hf_hub"].rpartition("/")
    names = [f"{Path(name).stem}.safetensors", name] if name else checkpoint.NAMES[:2]
    otherwise = (
        f"download {names[0]} from {_page(repository)} elsewhere and set clip.pretrained: /path/to/{names[0]}"
        if _shared_preprocessing(model) else _as_directory(repository)
    )  # fmt: skip
    weights = hub.download(_repository(repository, otherwise), names)
    preprocess_cfg = merge_preprocess_dict(PreprocessCfg(), tag_cfg)
    return _with_tokenizer(Source(model_cfg, preprocess_cfg, weights.path, str(weights)), otherwise)


def _from_hub(repository: str) -> Source:
    otherwise = _as_directory(repository)
    config = hub.download(_repository(repository, otherwise), [CONFIG])
    model_cfg, preprocess_cfg = _split_config(config.path, _read_config(config.path))
    weights = hub.download(_repository(repository, otherwise, config.commit), checkpoint.NAMES[:2])
    return _with_tokenizer(Source(model_cfg, preprocess_cfg, weights.path, str(weights)), otherwise)


def _from_directory(model: str) -> Source:
    directory = Path(model.removeprefix(LOCAL)).expanduser()
    model_cfg, preprocess_cfg = _split_config(directory / CONFIG, _read_config(directory / CONFIG))
    weights = next((directory / name for name in checkpoint.NAMES if (directory / name).is_file()), None)
    if weights is None:
        raise InputError(f"{directory}: has none of {', '.join(checkpoint.NAMES)}; put the weights there")
    tokenizer = tuple(file for file in sorted(directory.iterdir()) if _is_tokenizer_file(file.name))
    return Source(model_cfg, preprocess_cfg, weights, str(weights), tokenizer if _tokenizer_of(model_cfg) else ())


def _with_tokenizer(source: Source, otherwise: str) -> Source:
    """The same with the files of its tokenizer, if it has one of its own on the hub."""
    name = _tokenizer_of(source.model_cfg)
    if not name:
        return source
    commit = hub.download(_repository(name, otherwise), ["tokenizer_config.json"]).commit
    repository = _repository(name, otherwise, commit)
    names = [name for name in hub.list_files(repository) if _is_tokenizer_file(name)]
    files = tuple(hub.download(repository, [name]).path for name in names)
    return Source(source.model_cfg, source.preprocess_cfg, source.weights, source.origin, files)


def _tokenizer_of(model_cfg: dict[str, Any]) -> str:
    return model_cfg["text_cfg"].get("hf_tokenizer_name") or ""


def _is_tokenizer_file(name: str) -> bool:
    """Whether a file at the top of a model repository belongs to its (Hugging Face) tokenizer."""
    known = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt")
    return name in known or (name.startswith("tokenizer") and name.endswith(".json")) or name.endswith(".model")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; put the model's {path.name} there") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object; it must be an open_clip config")
    return content


def _split_config(path: Path, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Architecture and preprocessing of an ``open_clip_config.json``."""
    model_cfg = content.get("model_cfg")
    if not isinstance(model_cfg, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= model_cfg.keys():
        raise InputError(f"{path}: has no model_cfg with embed_dim, vision_cfg and text_cfg; it is no open_clip config")
    if "hf_model_name" in model_cfg["text_cfg"]:
        raise _foreign_text_tower(str(path))
    return model_cfg, merge_preprocess_dict(PreprocessCfg(), content.get("preprocess_cfg") or {})


def _foreign_text_tower(model: str) -> InputError:
    return InputError(
        f"clip.model: the text tower of {model} is a Hugging Face model, which open_clip looks up on the hub at every "
        f"load, so it cannot be pinned; take a model with open_clip's own text tower"
    )


def _shared_preprocessing(model: str) -> dict[str, Any] | None:
    """The preprocessing that all tags of an architecture have in common (open_clip's default without tags)."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    settings = [merge_preprocess_dict(PreprocessCfg(), get_pretrained_cfg(model, tag)) for tag in tags]
    settings = settings or [asdict(PreprocessCfg())]
    return settings[0] if all(other == settings[0] for other in settings) else None


def _preprocessing(model: str) -> dict[str, Any]:
    """The preprocessing of a local checkpoint of an architecture; a wrong one would silently spoil the features."""
    shared = _shared_preprocessing(model)
    if shared is None:
        raise InputError(
            f"clip.model: checkpoints of {model} differ in their preprocessing, and a file does not say which is its "
            f"own; put it into a directory beside its {CONFIG} and set clip.model: {LOCAL}/path/to/directory"
        )
    return shared


def _repository(name: str, otherwise: str, commit: str | None = None) -> hub.Repository:
    return hub.Repository(name, "model", "clip.model", otherwise, commit)


def _page(repository: str) -> str:
    return hub.page(repository, "model")


def _as_directory(repository: str) -> str:
    return (
        f"download {CONFIG} and {checkpoint.NAMES[0]} from {_page(repository)} elsewhere into one directory and set "
        f"clip.model: {LOCAL}/path/to/directory, clip.pretrained: null"
    )


def _choices(model: str, wrong: str = "") -> str:
    if model == EMBEDDED_MODEL:
        return f"set {EMBEDDED_TAG}"
    tags = open_clip.list_pretrained_tags_by_model(model)
    owners = list_pretrained_models_by_tag(wrong)
    near = _near(wrong, tags)
    return "; ".join(
        ([f"it is a tag of {', '.join(owners[:5])}"] if owners else [])
        + ([f"did you mean {' or '.join(near)}?"] if near else [])
        + ([f"tags of {model}: {', '.join(tags)}"] if tags else [f"{model} has no tags: give the path of a checkpoint"])
    )


def _near(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that look like `name`, whatever their case."""
    lower = {other.lower(): other for other in names}
    return [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]


def _activation(quick_gelu: bool) -> str:
    return "QuickGELU" if quick_gelu else "GELU"
