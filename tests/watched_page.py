"""``python -m stages`` that says on standard error whatever it does beside answering, a line each.

That is: files opened for writing, or anywhere but where Python, the project and the current directory are; other
changes of the disk; processes that are started, connections to others, and classes that a pickle names.
"""

import os
import sys
from pathlib import Path

from stages.__main__ import main

#: What is done with a file, and with the world; of some there are several kinds.
CHANGES = (
    "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.truncate", "os.symlink", "os.link",
    "os.utime", "shutil.", "tempfile.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork",
    "socket.connect", "socket.getaddrinfo", "socket.gethostby", "pickle.find_class",
)  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def watch() -> None:
    """From now on."""
    places = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]), str(Path.cwd()), "/proc", "/sys", "/dev")
    known = tuple(os.path.realpath(place) for place in places)

    def hear(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or (not flags & WRITES and os.path.realpath(path).startswith(known)):
                return
            event = "writes" if flags & WRITES else "reads"
        elif not event.startswith(CHANGES):
            return
        os.write(2, f"WATCHED {event} {arguments!r}\n".encode("utf-8", "backslashreplace"))

    sys.addaudithook(hear)


if __name__ == "__main__":
    watch()
    main()
