"""Named sets of parameters, written into ``params.yaml`` in place: its comments and all other values stay.

A preset is a section of a file in ``stages/train/presets/``, over what all of the file have in ``common``.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.artifacts import replacing
from stages.errors import InputError
from stages.params import PARAMS_FILE, merged, unknown_key

DIRECTORY = Path(__file__).parent / "train" / "presets"
COMMON = "common"


def names() -> list[str]:
    """All presets: ``FILE/SECTION``."""
    return [f"{file.stem}/{section}" for file in sorted(DIRECTORY.glob("*.yaml")) for section in _read(file)
            if section != COMMON]  # fmt: skip


def read(name: str) -> dict[str, Any]:
    """The values of a preset: nested, as in ``params.yaml``.

    Raises:
        InputError: there is no such preset; lists them.
    """
    if name not in names():
        raise InputError(f"preset '{name}': there is none of this name; take one of {', '.join(names())}")
    file, section = name.split("/")
    content = _read(DIRECTORY / f"{file}.yaml")
    return merged(content[COMMON], content[section])


def apply(name: str, path: Path = PARAMS_FILE) -> list[str]:
    """Write the preset `name` into the parameters file.

    Returns:
        What has changed, a line each: ``key: old -> new``.

    Raises:
        InputError: there is no such preset, or the file is missing, no YAML, or has not all of its keys.
    """
    values = read(name)
    yaml = _yaml()
    try:
        content = yaml.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found in {Path.cwd()}; run from the root of the project") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    changes = []
    for keys, new in _leaves(values):
        section = content
        for depth, key in enumerate(keys):
            if not isinstance(section, dict) or key not in section:
                known = section if isinstance(section, dict) else ()
                raise InputError(f"{path}: preset '{name}' sets {unknown_key('.'.join(keys[: depth + 1]), known)}")
            if depth < len(keys) - 1:
                section = section[key]
        if section[keys[-1]] != new:
            changes.append(f"{'.'.join(keys)}: {json.dumps(section[keys[-1]])} -> {json.dumps(new)}")
            section[keys[-1]] = new
    text = io.StringIO()
    yaml.dump(content, text)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
    return changes


def _yaml() -> YAML:
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.preserve_quotes = True
    yaml.width = 4096  # lines are not folded
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _read(file: Path) -> dict[str, Any]:
    # Numbers stay as they are written: 0.000001 would go out as 1e-06, which YAML 1.1 takes for text.
    return _yaml().load(file.read_text(encoding="utf-8"))


def _leaves(values: dict[str, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*keys, key))
        else:
            yield (*keys, key), value
