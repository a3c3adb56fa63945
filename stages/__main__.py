"""``python -m stages NAME``: one command a stage, each of which runs with and without DVC."""

import importlib
import sys

import typer

from stages.errors import InputError, OutsideError
from stages.params import PARAMS_FILE, parse, read_params_file

#: The stages in the order in which data flows through them.
STAGES = (
    "download", "weights", "extract", "mine", "similarity", "components", "train", "encode", "baselines", "evaluate",
)  # fmt: skip

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Unsupervised image hashing, stage by stage. `dvc repro` runs what is out of date, in order.",
)


def run_stage(name: str) -> None:
    """Check the whole of ``params.yaml``, then run the stage `name` with the keys that it reads."""
    values = read_params_file()
    configs = {stage: importlib.import_module(f"stages.{stage}.config").Params for stage in STAGES}
    known = {key for config in configs.values() for key in config.model_fields}
    for key in values:
        if key not in known:
            raise InputError(f"{PARAMS_FILE}: unknown key '{key}'; known keys are {', '.join(sorted(known))}")
    params = {stage: parse(config, values) for stage, config in configs.items()}
    importlib.import_module(f"stages.{name}.stage").run(params[name])


def _register(name: str) -> None:
    # The help of a command is the docstring of the stage's config module, which is cheap to import.
    text = importlib.import_module(f"stages.{name}.config").__doc__

    @app.command(name, help=text)
    def command() -> None:
        run_stage(name)


def main() -> None:
    """Entry point: one clear line and an exit code instead of a traceback.

    2: parameters, data or disk (the user can mend it); 1: something outside failed; 130: interrupted.
    """
    for name in STAGES:
        _register(name)
    try:
        app()
    except (InputError, OutsideError) as error:
        code = 2 if isinstance(error, InputError) else 1
        message = str(error)
    except OSError as error:  # full or read-only disk, missing permission: names the file itself
        code, message = 2, f"{error.filename or 'disk'}: {error.strerror or error}; make room or correct the permissions"
    except KeyboardInterrupt:
        code, message = 130, "interrupted; the same command resumes"
    else:
        return
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
