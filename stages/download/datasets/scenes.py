"""The embedded data set: rendered scenes."""

from collections.abc import Iterator
from functools import partial

from stages.download.config import DatasetOptions
from stages.download.protocols import PROTOCOLS
from stages.download.source import Record, Source, encoded
from stages.scenes.catalogue import SHOWN
from stages.scenes.render import render_scene


def scenes(options: DatasetOptions) -> Source:
    """As many scenes of the series `options.seed` as queries and database take, coded as PNG."""
    usual = PROTOCOLS["scenes"]
    count = (options.queries or usual.queries) + (options.database or usual.database)
    return Source(
        name="scenes",
        class_names=tuple(SHOWN),
        licence="MIT",
        source=f"rendered by stages.scenes, seed {options.seed}",
        size=count,
        records=partial(_records, options.seed, count),
        identity=f"seed {options.seed}, {count} scenes",
    )


def _records(seed: int, count: int, start: int) -> Iterator[Record]:
    index_of = {name: index for index, name in enumerate(SHOWN)}
    for index in range(start, count):
        scene = render_scene(seed, index)
        labels = tuple(sorted(index_of[name] for name in scene.labels))
        yield encoded(scene.pixels, f"scene-{index:06d}.png", labels)
