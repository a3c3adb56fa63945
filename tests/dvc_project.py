"""The working tree as a project of its own: with git history, DVC, and a cache."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml
from stage_runner import ROOT, TINY, outputs, write_params

from stages.__main__ import STAGES


class Project:
    """A clone of the working tree with its own git history and DVC cache."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "project"
        # Neither a git hook's nor an experiment's variables, nor the settings of whoever runs the tests.
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "DVC"))} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_GLOBAL_CONFIG_DIR": str(directory / "config"), "DVC_SITE_CACHE_DIR": str(directory / "site"),
            "GIT_CONFIG_GLOBAL": os.devnull, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        made = {"dvc.lock", *(path for stage in STAGES for path in outputs(stage))}
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True,
                                capture_output=True, text=True).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if name not in made and (ROOT / name).is_file():
                (self.directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.directory / name)
        write_params(self.directory, TINY)
        self.git("init", "--quiet")
        self.git("config", "user.name", "test")
        self.git("config", "user.email", "test@localhost")
        self.commit()

    def run(self, *command: str) -> str:
        result = subprocess.run(command, cwd=self.directory, env=self.environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{command}: {result.stdout}\n{result.stderr}"
        return result.stdout

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments)

    def dvc(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def start_queue(self) -> None:
        """Start a worker for what is queued; it lives on, with the output that it was given, which is none."""
        subprocess.run([sys.executable, "-m", "dvc", "queue", "start"], cwd=self.directory, env=self.environment,
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip

    def run_queue(self, experiments: int, seconds: float = 600) -> list[str]:
        """Run what is queued; the states in which the experiments ended, or were after so many seconds."""
        self.start_queue()
        try:
            deadline, states = time.monotonic() + seconds, []
            while time.monotonic() < deadline:
                states = re.findall(r"^\w{7}\s+\S+\s+.*?(\w+)$", self.dvc("queue", "status"), re.MULTILINE)
                if len(states) == experiments and not {"Queued", "Running"} & set(states):
                    break
                time.sleep(2)
        finally:
            self.dvc("queue", "stop", "--kill")
        return states

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "state")

    def changed(self) -> set[str]:
        """Files that are not as committed."""
        return {line[3:] for line in self.git("status", "--porcelain", "--untracked-files=all").splitlines()}

    def locked(self) -> dict[str, str]:
        """Digests of the outputs."""
        stages = yaml.safe_load((self.directory / "dvc.lock").read_text(encoding="utf-8"))["stages"].values()
        return {out["path"]: out["md5"] for stage in stages for out in stage["outs"]}

    def reset(self) -> None:
        """Back to the commit, the DVC outputs as well."""
        self.git("checkout", "--quiet", ".")
        self.dvc("checkout", "--quiet")

    def experiment(self, *changes: str) -> tuple[list[str], list[str]]:
        """``dvc exp run`` with these ``-S`` options: the stages that ran, and those that came from the run cache."""
        said = self.dvc("exp", "run", *(part for change in changes for part in ("-S", change)))
        return stages_run(said), re.findall(r"^Stage '(\w+)' is cached", said, re.MULTILINE)


def stages_run(said: str) -> list[str]:
    return re.findall(r"^Running stage '(\w+)'", said, re.MULTILINE)
