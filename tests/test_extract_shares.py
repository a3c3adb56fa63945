"""Extraction in parts, by commands that know nothing of each other: the same file, whatever is killed in between."""

import itertools
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import kubernetes_validate
import numpy as np
import pytest
import yaml
from scene_shards import scenes, write_shards
from stage_runner import ROOT, StageRunner, leftovers, prepare

from stages.artifacts import CLIP, FEATURES, RESUME
from stages.clip import MIXED, ClipModel, load_clip
from stages.errors import InputError
from stages.extract import pixels, shares
from stages.extract.config import Params
from stages.extract.shares import extract_share, merge
from stages.extract.stage import run
from stages.params import parse, read_params_file
from stages.parts import write_part

COUNT = 23
IS_TRAIN = np.arange(COUNT) < 9
#: Row groups of 5, 5, 1 and 5, 5, 2 images.
GROUPS = 6
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, pinned: Path) -> Path:
    place = prepare(tmp_path_factory.mktemp("inputs"))
    (place / CLIP).parent.mkdir()
    (place / CLIP).symlink_to(pinned)
    write_shards(place, scenes(COUNT), IS_TRAIN)
    return place


@pytest.fixture
def project(here: Path, clip: ClipModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The inputs, and the model loaded once for all tests."""
    for module in (pixels, shares):
        monkeypatch.setattr(module, "load_clip", lambda device="cpu", precision="auto": clip)
    return here


def params(**changes: object) -> Params:
    options = {"engine": "local", "views": 2, "batch_size": 5, "precision": "auto", "workers": 0, "seed": 0, **changes}
    return parse(Params, {"device": "cpu", "extract": options})


def parts() -> list[str]:
    return sorted(part.name for part in RESUME.glob("extract-*/*.npz"))


@pytest.fixture
def whole(project: Path) -> bytes:
    """What one process writes."""
    run(params())
    content = FEATURES.read_bytes()
    FEATURES.unlink()
    return content


@pytest.mark.parametrize("count", [1, 3, 10])
def test_parts_in_any_order_make_the_same_file(whole: bytes, count: int) -> None:
    for index in reversed(range(count)):
        extract_share(params(), f"{index}/{count}")
        assert not FEATURES.exists()
    assert len(parts()) == GROUPS
    merge(params())
    assert FEATURES.read_bytes() == whole
    assert list(RESUME.iterdir()) == []


def test_the_stage_itself_goes_on_from_parts(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(2):
        extract_share(params(), f"{index}/2")
    monkeypatch.setattr(pixels, "DecodedSlices", lambda slices, *_: slices if slices == [] else pytest.fail("encodes"))
    run(params())
    assert FEATURES.read_bytes() == whole


def test_merge_says_what_is_missing_and_is_idle_when_all_is_done(whole: bytes) -> None:
    with pytest.raises(InputError, match="6 of 6 row groups"):
        merge(params())
    extract_share(params(), "1/3")
    with pytest.raises(InputError, match=r"4 of 6 row groups .* --shard I/N`") as error:
        merge(params())
    assert "\n" not in str(error.value) and not FEATURES.exists()
    for index in range(3):
        extract_share(params(), f"{index}/3")
    merge(params())
    before = FEATURES.stat()
    merge(params())
    assert (FEATURES.stat().st_mtime_ns, FEATURES.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_file_of_another_precision_or_of_before_is_not_taken_for_this_one(
    whole: bytes, pinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "load_clip", partial(load_clip, pinned))
    extract_share(params(), "0/1")
    merge(params())
    assert FEATURES.read_bytes() == whole
    with pytest.raises(InputError, match="6 of 6 row groups"):
        merge(params(precision="bfloat16"))
    extract_share(params(precision="bfloat16"), "0/2")
    with pytest.raises(InputError, match="3 of 6 row groups"):
        merge(params(precision="bfloat16"))
    extract_share(params(), "0/3")  # begun anew, for whatever reason
    with pytest.raises(InputError, match="4 of 6 row groups"):
        merge(params())
    assert FEATURES.read_bytes() == whole


@pytest.mark.parametrize("share", ["3/3", "4/3", "-1/3", "0/0", "1", "1/2/3", "a/b", "", "1 /2", "1.0/2", "٠/٣"])
def test_what_is_no_part_is_refused(project: Path, share: str) -> None:
    with pytest.raises(InputError, match=r"--shard .*: expected I/N, .*0/4 or 3/4"):
        extract_share(params(), share)
    assert not RESUME.exists()


@pytest.mark.parametrize("change", [{"seed": 1}, {"views": 3}, {"precision": "bfloat16"}])
def test_parts_of_other_parameters_stay_where_they_are_and_are_not_taken(
    whole: bytes, pinned: Path, monkeypatch: pytest.MonkeyPatch, change: dict
) -> None:
    """Another array may be at work in the same directory."""
    with monkeypatch.context() as patched:
        patched.setattr(shares, "load_clip", lambda device, precision: load_clip(pinned, device, precision))
        extract_share(params(**change), "0/1")
    others = set(RESUME.rglob("*.npz"))
    assert len(others) == GROUPS
    with pytest.raises(InputError, match="6 of 6"):
        merge(params())
    extract_share(params(), "0/1")
    merge(params())
    assert FEATURES.read_bytes() == whole
    assert set(RESUME.rglob("*.npz")) == others


def test_what_is_done_is_not_encoded_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []

    def write(part: Path, **arrays: np.ndarray) -> None:
        encoded.append(part)
        write_part(part, **arrays)

    monkeypatch.setattr(pixels.encode_row_groups, "__defaults__", (write,))
    extract_share(params(), "0/2")
    assert [part.name for part in encoded] == ["000000.npz", "000002.npz", "000004.npz"]
    encoded[1].unlink()
    extract_share(params(), "0/2")
    assert [part.name for part in encoded[3:]] == ["000002.npz"]


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_machine_without_gpu_joins_what_gpus_encoded(
    project: Path, clip: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = parse(Params, {"device": "auto", "extract": params().extract.model_dump()})
    monkeypatch.setattr(pixels, "resolve_device", lambda device: clip.device)
    monkeypatch.setattr(shares, "resolve_device", lambda device: clip.device)
    monkeypatch.setattr(shares, "load_clip", lambda device="cpu", precision="auto": replace(clip, precision=MIXED))
    extract_share(on_gpu, "0/1")
    monkeypatch.setattr(shares, "load_clip", lambda device="cpu", precision="auto": clip)
    with pytest.raises(InputError, match="6 of 6"):
        merge(params())  # of device: cpu
    merge(on_gpu)
    assert FEATURES.exists() and list(RESUME.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_part_is_removed_and_made_again(whole: bytes, damage: str) -> None:
    extract_share(params(), "0/1")
    part = sorted(RESUME.rglob("*.npz"))[2]
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes({"cut": content[:-30], "flipped": content, "empty": b""}[damage])
    with pytest.raises(InputError, match=re.escape(f"{part}: unfinished work, damaged")) as error:
        merge(params())
    assert "\n" not in str(error.value) and not FEATURES.exists() and not part.exists()
    extract_share(params(), "0/1")
    merge(params())
    assert FEATURES.read_bytes() == whole


# ---- the command line


@pytest.mark.slow
def test_killed_in_the_middle_the_commands_yield_the_same_bytes(project: Path, run_stages: StageRunner) -> None:
    same = parse(Params, read_params_file())
    run(same)
    undisturbed = FEATURES.read_bytes()
    FEATURES.unlink()
    for event, *options in ((9, "--shard", "0/1"), (3, "--merge")):
        result = run_stages(project, "extract", *options, events=True, at_event=event)
        assert result.returncode == -9, result.stderr
        assert not FEATURES.exists()
        if "--shard" in options:
            assert 0 < len(parts()) < GROUPS
            extract_share(same, "0/1")
    assert len(parts()) == GROUPS
    merge(same)
    assert FEATURES.read_bytes() == undisturbed
    assert leftovers(project) == []


@pytest.mark.slow
def test_options_are_checked(tmp_path: Path, run_stages: StageRunner) -> None:
    place = prepare(tmp_path / "run")
    assert "give one of them" in run_stages(place, "extract", "--shard", "0/2", "--merge").error()
    assert "--shard '2/2': expected I/N" in run_stages(place, "extract", "--shard", "2/2").error()


# ---- examples


def test_the_slurm_script_does_a_part(inputs: Path, tmp_path: Path) -> None:
    script = EXAMPLES / "slurm" / "extract.sh"
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script.read_text(), re.MULTILINE))
    assert options["array"] == "0-15"  # parts are counted from 0
    assert {"cpus-per-task", "mem", "time", "output"} <= options.keys()
    done = tmp_path / "arguments"
    (tmp_path / "python").write_text(f'#!/bin/sh\npwd > {done}\necho "$@" >> {done}\n')
    (tmp_path / "python").chmod(0o755)
    slurm = {"SLURM_SUBMIT_DIR": str(inputs), "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "16"}
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([script], env=environment | slurm, cwd=tmp_path, check=True)
    assert done.read_text().splitlines() == [str(inputs), "-m stages extract --shard 3/16"]
    outside = subprocess.run([script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert outside.returncode and "SLURM_SUBMIT_DIR" in outside.stderr


@pytest.mark.parametrize("command", [
    ("shellcheck", "slurm/extract.sh"),
    ("yamllint", "-s", "-d", "{extends: default, rules: {line-length: {max: 120}, document-start: disable}}", "."),
    ("kubernetes-validate", "--strict", "kubernetes/extract.yaml", "kubernetes/merge.yaml"),
])  # fmt: skip
def test_linters_find_nothing(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name(command[0]), *command[1:]], cwd=EXAMPLES, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def pods(description: dict) -> list[dict]:
    """The templates of pods in a description, wherever they are."""
    found = [description["template"]["spec"]] if "template" in description else []
    below = itertools.chain.from_iterable([v] if isinstance(v, dict) else v if isinstance(v, list) else []
                                          for v in description.values())  # fmt: skip
    return found + [pod for value in below if isinstance(value, dict) for pod in pods(value)]


@pytest.mark.parametrize("file", ["kubernetes/extract.yaml", "kubernetes/merge.yaml", "kuberay/extract.yaml"])
def test_pods_are_complete(file: str) -> None:
    description = yaml.safe_load((EXAMPLES / file).read_text())
    assert description["metadata"]["name"]
    found = pods(description["spec"])
    assert found
    for pod in found:
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": pod}
        kubernetes_validate.validate(whole, kubernetes_validate.latest_version(), strict=True)
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["name"] and re.fullmatch(r"[\w.:-]+", container["image"])
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            assert {"name": "project", "mountPath": "/project"} in container["volumeMounts"]


def test_the_kubernetes_job_gives_every_pod_its_part() -> None:
    description = yaml.safe_load((EXAMPLES / "kubernetes/extract.yaml").read_text())
    assert (description["apiVersion"], description["kind"]) == ("batch/v1", "Job")
    spec = description["spec"]
    pod = spec["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and pod["restartPolicy"] in ("OnFailure", "Never")
    (container,) = pod["containers"]
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert int(environment["PARTS"]) == spec["completions"]
    shell, option, command = container["command"]
    said = command.replace("exec python", "echo")
    given = os.environ | environment | {"JOB_COMPLETION_INDEX": "15"}
    printed = subprocess.run([shell, option, said], env=given, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["-m", "stages", "extract", "--shard", "15/16"]
    merging = yaml.safe_load((EXAMPLES / "kubernetes/merge.yaml").read_text())
    (container,) = merging["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "stages", "extract", "--merge"]


def test_the_ray_job_is_one() -> None:
    description = yaml.safe_load((EXAMPLES / "kuberay/extract.yaml").read_text())
    assert (description["apiVersion"], description["kind"]) == ("ray.io/v1", "RayJob")
    spec = description["spec"]
    assert spec["entrypoint"].endswith("python -m stages extract'")
    assert spec["shutdownAfterJobFinishes"] is True
    cluster = spec["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert len({pod["containers"][0]["image"] for pod in pods(cluster)}) == 1
