"""A page to search data/index with, in the browser: by a photo, by a text, by an image, and on a map of the database.

Reads data/index, data/features.h5, data/concepts.parquet, models/ and, where there is one, data/map.parquet of the
directory that it is started in. It writes nothing. Needs Gradio: pip install -e '.[page]'. See docs/page.md.
"""

from typing import Annotated

from pydantic import Field

from stages.params import Frozen

#: Bytes of an upload, at most: a photograph of a camera or a phone has 3 to 12 MiB.
MAX_UPLOAD = 16 * 2**20
#: Bytes of all uploads that are held at a time; the next ones wait.
MAX_UPLOADS = 256 * 2**20
#: Seconds that an upload may take, and wait for its turn.
UPLOAD_SECONDS = 60
#: Characters of a text, at most; CLIP cuts at 77 tokens.
MAX_TEXT = 500
#: Hits that are asked for to begin with and at most, and candidates that can be re-ranked.
TOP, MAX_TOP, MAX_RERANK = 20, 100, 1000
#: Queries that are worked on at a time; they wait for the encoder together.
THREADS = 64


class Page(Frozen):
    """Where the page is served.

    Attributes:
        host: address to listen at; others than those of this machine itself are only for a network of friends.
        port: 0 takes any that is free.
    """

    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=0, lt=2**16)]

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")
