"""Bytes that take new branches in what reads those of strangers: by Atheris, which is libFuzzer for Python.

    python tests/atheris_parsers.py image -max_total_time=300

begins with valid examples. What a reader raises but its own errors ends the run with a traceback; the bytes are in
``crash-*`` of the current directory, and give the same when they are named after the options. `test_atheris.py` has
a minute of each by night, where Atheris is installed.
"""

import io
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["stages", "PIL", "yaml"]):
    from picture import picture

    from stages.download.datasets.csv_rows import read_rows
    from stages.download.datasets.webdataset_samples import labels_of, read_samples
    from stages.errors import InputError
    from stages.images import decode, grey_thumbnail, thumbnail
    from stages.mine.vocabulary import read_vocabulary
    from stages.params import parse, read_params_file
    from stages.train.config import Params


def read_image(path: Path) -> None:
    data = path.read_bytes()
    for read in (decode, lambda data: thumbnail(data, 96), lambda data: grey_thumbnail(data, (9, 8))):
        try:
            read(data)
        except ValueError as error:
            assert str(error) and "\n" not in str(error)


def read_archive(path: Path) -> None:
    for sample in read_samples(path):
        labels_of(sample)


def read_list(path: Path) -> None:
    for _ in read_rows(path):
        pass


def read_params(path: Path) -> None:
    parse(Params, read_params_file(path), path)


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (("1.png", picture(1, size=4)), ("1.json", b'{"label": [1]}'), ("1.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/1.png", picture(1, size=4))
        archive.writestr("a/1.txt", "a thing")
    return buffer.getvalue()


KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
#: By name: what reads a file of a stranger, the ending of its name, and valid ones.
TARGETS: dict[str, tuple[Callable[[Path], object], str, list[bytes]]] = {
    "image": (read_image, "", [picture(0, size=9, kind=kind) for kind in KINDS]),
    "archive": (read_archive, ".tar", [tar(), zipped()]),
    "list": (read_list, ".csv", [b'path,label,split\na.png,cat|dog,train\n"b,c.png",\xff,\n']),
    "vocabulary": (read_vocabulary, ".txt", [b"a cat\n\nice cream # sweet\n", "caf\xe9\n\u8336\n".encode()]),
    "params": (read_params, ".yaml", [(Path(__file__).parents[1] / "params.yaml").read_bytes(), b"a: &b [*b]\n"]),
}  # fmt: skip


def main() -> None:
    """Run the target that the first argument names, with the options that follow it."""
    warnings.simplefilter("ignore")  # of PIL, about damaged images
    name, *options = sys.argv[1:]
    read, ending, examples = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="atheris-") as directory:
        path, corpus = Path(directory, f"given{ending}"), Path(directory, "corpus")
        corpus.mkdir()
        for number, example in enumerate(examples):
            (corpus / str(number)).write_bytes(example)

        def test(data: bytes) -> None:
            path.write_bytes(data)
            try:
                read(path)
            except InputError as error:
                assert str(error) and "\n" not in str(error), str(error)

        atheris.Setup([sys.argv[0], str(corpus), "-timeout=30", "-rss_limit_mb=3000", *options], test)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
