"""``python -m stages NAME``: one command a stage, each of which runs with and without DVC."""

import ast
import errno
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.artifacts import DISK_ERRORS, disk_error
from stages.errors import InputError, OutsideError
from stages.timings import timed

#: The stages in the order in which data flows through them.
STAGES = (
    "download", "weights", "extract", "mine", "similarity", "components", "train", "encode", "index", "map",
    "baselines", "evaluate", "explain", "report",
)  # fmt: skip

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Unsupervised image hashing, stage by stage. `dvc repro` runs what is out of date, in order.",
)


def _docstring(module: str) -> str:
    """The docstring of a module that is not imported: of a stage's config module, the help of the command."""
    source = Path(importlib.util.find_spec(module).origin)
    return ast.get_docstring(ast.parse(source.read_bytes()))


def checked_params(name: str) -> Any:
    """Check the whole of ``params.yaml``; the keys that the stage `name` reads."""
    from stages.params import PARAMS_FILE, parse, read_params_file, unknown_key  # pydantic, which --help needs not

    values = read_params_file()
    configs = {stage: importlib.import_module(f"stages.{stage}.config").Params for stage in STAGES}
    known = {key for config in configs.values() for key in config.model_fields}
    for key in values:
        if key not in known:
            raise InputError(f"{PARAMS_FILE}: {unknown_key(str(key), known)}")
    return {stage: parse(config, values) for stage, config in configs.items()}[name]


def run_stage(name: str) -> None:
    """Run the stage `name` with the keys of ``params.yaml`` that it reads."""
    from stages.params import PARAMS_FILE, parse, read_params_file

    with _among_others(name) as writes:
        params = checked_params(name)
        with timed(name, params.model_dump(mode="json")) if writes else nullcontext():
            importlib.import_module(f"stages.{name}.stage").run(params)
        # DVC notes what the file says when the stage ends; it would take these outputs for those of the new parameters.
        if parse(type(params), read_params_file()) != params:
            raise InputError(f"{PARAMS_FILE}: changed while {name} ran; repeat the command")


@contextmanager
def _among_others(name: str) -> Iterator[bool]:
    """Join the processes that ``torchrun`` started for the stage `name`, if it did; whether this is the one to write.

    Raises:
        InputError: the stage runs in one process.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isdecimal() or not int(world):
        raise InputError(f"WORLD_SIZE: {world!r} is no number of processes; unset it, or start `train` with torchrun")
    if int(world) == 1:
        yield True
        return
    if name != "train":
        raise InputError(f"{name}: runs in one process (WORLD_SIZE is set); start it without torchrun")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is told in one line, not in fifty
    with importlib.import_module("stages.train.distributed").joined():
        yield os.environ["RANK"] == "0"


def _register(name: str) -> None:
    def command() -> None:
        with one_line_errors():
            run_stage(name)

    help_text = _docstring(f"stages.{name}.config")
    register = app.command(name, help=help_text, rich_help_panel="Stages, in the order in which data flows")
    others = {"extract": _extract, "explain": _explain, "encode": _encode, "index": _index, "report": _report}
    register(others.get(name, command))


def _extract(
    share: Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Only part I of N, I from 0.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join what was encoded in parts.")] = False,
) -> None:
    with one_line_errors():
        if share is not None and merge:
            raise InputError("extract: --shard I/N encodes a part and --merge joins all; give one of them")
        if share is None and not merge:
            run_stage("extract")
        else:
            shares = importlib.import_module("stages.extract.shares")
            with _among_others("extract"):
                params = checked_params("extract")
                shares.merge(params) if merge else shares.extract_share(params, share)


def _explain(
    image: Annotated[Path | None, typer.Option(help="Explain the code of this image file.")] = None,
    index: Annotated[int | None, typer.Option("--id", help="Explain the code of this image of the data set.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON; with --image or --id.")] = False,
) -> None:
    with one_line_errors():
        if image is None and index is None and not as_json:
            run_stage("explain")
        else:
            importlib.import_module("stages.explain.command").explain(image, index, as_json)


def _encode(
    folder: Annotated[str | None, typer.Option(help="Encode the images of this folder; - reads paths.")] = None,
    output: Annotated[Path | None, typer.Option(help="A .parquet or .npy file.")] = None,
    model: Annotated[str | None, typer.Option(help="A published network: DIR or hf-hub:ORG/NAME.")] = None,
) -> None:
    with one_line_errors():
        if folder is None and output is None and model is None:
            run_stage("encode")
        else:
            importlib.import_module("stages.encode.folder").encode(folder, output, model)


def _index(
    folder: Annotated[str | None, typer.Option("--add", help="Add the images of a folder; - reads paths.")] = None,
    ids: Annotated[list[int] | None, typer.Option("--remove", help="Remove the image of this id; repeat it.")] = None,
) -> None:
    with one_line_errors():
        if folder is None and not ids:
            run_stage("index")
        else:
            importlib.import_module("stages.search.change").change(folder, ids or [])


def _report(
    timings: Annotated[Path | None, typer.Option(help="Write the page with times here instead.")] = None,
) -> None:
    with one_line_errors():
        if timings is None:
            run_stage("report")
        else:
            importlib.import_module("stages.report.with_times").write_with_times(timings)


@app.command("timings")
def _timings() -> None:
    """How long each stage took when it last ran here, and how much memory."""
    with one_line_errors():
        importlib.import_module("stages.timings").show()


@app.command("search")
def _search(
    image: Annotated[list[Path] | None, typer.Option(help="An image file; several: what they have in common.")] = None,
    index: Annotated[int | None, typer.Option("--id", help="An image of the index.")] = None,
    text: Annotated[str | None, typer.Option(help='Like "a dog and a boat".')] = None,
    top: Annotated[int, typer.Option(help="Images to find.")] = 20,
    radius: Annotated[int | None, typer.Option(help="Hamming distance in bits, at most.")] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Order the nearest by float features.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    output: Annotated[Path | None, typer.Option(help="A .json, .parquet or .png (contact sheet) file.")] = None,
    model: Annotated[str | None, typer.Option(help="A published network: DIR or hf-hub:ORG/NAME.")] = None,
) -> None:
    """The images of data/index nearest to an image, to several, or to a text."""
    with one_line_errors():
        importlib.import_module("stages.search.command").search(
            image or [], index, text, top, radius, rerank, as_json, output, model
        )


@app.command("serve", help=_docstring("stages.serve.config"))
def _serve(
    host: Annotated[str, typer.Option(help="Address to listen at; the default is this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.")] = 7860,
    model: Annotated[str | None, typer.Option(help="A published network: DIR or hf-hub:ORG/NAME.")] = None,
) -> None:
    with one_line_errors():
        importlib.import_module("stages.serve.command").serve(host, port, model)


@app.command("export")
def _export(output: Annotated[Path, typer.Argument(help="A .parquet or .npy file.")]) -> None:
    """The ids and codes of data/index as a Parquet file, or as .npy with the ids beside it."""
    with one_line_errors():
        importlib.import_module("stages.index.export").export(output)


codes = typer.Typer(no_args_is_help=True, help="Codes without images, by the billion: build shards, search them.")
app.add_typer(codes, name="codes")


@codes.command("build")
def _build_codes(
    directory: Annotated[Path, typer.Argument(help="Of the shards; those that it has are replaced.")],
    files: Annotated[list[Path], typer.Argument(help="Packed codes, .npy or .parquet, as encode and export write.")],
    per_shard: Annotated[int, typer.Option(min=1, help="Codes of a shard, which memory has to hold.")] = 10_000_000,
) -> None:
    """Codes of files as shards on disk; a code is known by its row, its place among them all."""
    with one_line_errors():
        importlib.import_module("stages.index.sharded_command").build(directory, files, per_shard)


@codes.command("verify")
def _verify_codes(directory: Annotated[Path, typer.Argument(help="Of the shards.")]) -> None:
    """Whether the shards have the content that they were built with."""
    with one_line_errors():
        importlib.import_module("stages.index.sharded_command").verify(directory)


@codes.command("search")
def _search_codes(
    directory: Annotated[Path, typer.Argument(help="Of the shards.")],
    queries: Annotated[Path, typer.Argument(help="Packed codes, .npy or .parquet.")],
    output: Annotated[Path, typer.Option(help="A .parquet file: query, rank, row, distance.")],
    top: Annotated[int, typer.Option(min=1, help="Codes to find for each.")] = 20,
    ray: Annotated[bool, typer.Option("--ray", help="By the actors of a Ray cluster.")] = False,
) -> None:
    """The nearest codes to each of a file, exactly; no more than one shard is in memory."""
    with one_line_errors():
        importlib.import_module("stages.index.sharded_command").search(directory, queries, top, output, ray)


@app.command("publish")
def _publish(folder: Annotated[Path, typer.Argument(help="A new folder, or one published before.")]) -> None:
    """The trained network as a folder to use elsewhere: weights, CLIP, concepts and a model card."""
    with one_line_errors():
        importlib.import_module("stages.publish").publish(folder)


@app.command("preset")
def _preset(name: Annotated[str | None, typer.Argument(help="Like uhscm_paper/cifar10.")] = None) -> None:
    """Write a paper's parameters for a data set into params.yaml; without a name, list what there is."""
    with one_line_errors():
        presets = importlib.import_module("stages.presets")
        print("\n".join(presets.names() if name is None else presets.apply(name)))


@app.command("benchmark", help=_docstring("stages.benchmark.config"))
def _benchmark(
    plan: Annotated[Path | None, typer.Option(help="What is compared.", show_default="plans/scenes.yaml")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, of one thread each.")] = 2,
    queue: Annotated[bool, typer.Option("--queue", help="Put it into the queue of DVC experiments.")] = False,
    collect: Annotated[bool, typer.Option("--collect", help="Report on such experiments.")] = False,
) -> None:
    with one_line_errors():
        importlib.import_module("stages.benchmark.stage").run(plan, workers, queue, collect)


@app.command("compare")
def _compare(
    first: Annotated[str, typer.Argument(metavar="REV1", help="A git revision, a DVC experiment, or `workspace`.")],
    second: Annotated[str, typer.Argument(metavar="REV2", help="Likewise.")] = "workspace",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown, for a pull request.")] = False,
) -> None:
    """Two runs side by side: parameters that differ, metrics and baselines with their differences."""
    with one_line_errors():
        importlib.import_module("stages.compare").compare(first, second, as_json, markdown)


@app.command("verify")
def _verify(
    paths: Annotated[list[Path] | None, typer.Argument(help="Artifacts; without one, all of dvc.lock.")] = None,
) -> None:
    """Compare the content of artifacts, byte by byte, with the digests in dvc.lock."""
    with one_line_errors():
        count = importlib.import_module("stages.verify").verify(paths or [])
        print(f"{count} artifact{'s' * (count != 1)} as noted in dvc.lock")


class Terminated(BaseException):
    """SIGTERM came: the work in progress is cleaned up as after Ctrl-C."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the next one ends it at once
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch would raise an error for each of its workers that end, too
    raise Terminated


@contextmanager
def one_line_errors() -> Iterator[None]:
    """One clear line and an exit code instead of a traceback, for everything that is not a bug of the project.

    2: parameters, data, memory or disk (the user can mend it); 1: something outside failed; 130, 143: interrupted.
    """
    try:
        yield
    except InputError as error:
        code, message = 2, str(error)
    except OutsideError as error:
        code, message = 1, str(error)
    except OSError as error:
        code, message = 2, _disk_message(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted; the same command resumes"
    except Terminated:
        code, message = 143, "terminated; the same command resumes"
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        reason = f" ({' '.join(str(error).split())[:200]})" if str(error) else ""
        code, message = 2, f"out of memory{reason}; free some, or set smaller batch sizes in params.yaml"
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch has an error of its own for a GPU, which is not worth importing it here, and for the CPU only words.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def _disk_message(error: OSError) -> str:
    number, path = disk_error(error)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "make room on that disk and repeat the command"
    elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
        advice = "correct the permissions there and repeat the command"
    elif number in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY):
        advice = "something else is in the way there; move it"
    else:
        advice = "check that path and its disk"
    reason = os.strerror(number) if number in DISK_ERRORS else error.strerror or str(error)
    return f"{path or Path.cwd()}: {' '.join(reason.split())}; {advice}"


def main() -> None:
    """Entry point, see :func:`one_line_errors`."""
    signal.signal(signal.SIGTERM, _terminate)
    # Threads of the encoder that spin while they wait take the cores from the processes that decode for it: where there
    # are few cores, extraction becomes several times slower. OpenMP reads this when torch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in STAGES:
        _register(name)
    app()


if __name__ == "__main__":
    main()
