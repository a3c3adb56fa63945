"""Extraction and encoding by Ray: the same files as by this machine alone, also when a worker is lost."""

import os
import pickle
import signal
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from scene_shards import pin_scenes_clip, scenes, write_shards
from stage_runner import leftovers, prepare

from stages import ray_pool
from stages.artifacts import CLIP, CODES, FEATURES, IMAGES, RESUME, Provenance
from stages.backbone import BackboneConfig, BackboneNet, build_backbone
from stages.codes import read_codes
from stages.encode import stage as encode
from stages.encode.config import Encode
from stages.encode.config import Params as EncodeParams
from stages.errors import InputError, OutsideError
from stages.extract import ray_engine
from stages.extract.config import Params
from stages.extract.shares import extract_share
from stages.extract.stage import run
from stages.features import Features
from stages.hashnet import save_hashnet
from stages.index.sharded import ShardedIndex, build
from stages.index.sharded_ray import RayShards
from stages.params import parse
from stages.ray_pool import Machines, ray_machines, run_row_groups

ray = pytest.importorskip("ray")
COUNT = 60
IS_TRAIN = np.arange(COUNT) % 3 == 1


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = prepare(tmp_path_factory.mktemp("inputs"))
    pin_scenes_clip(place / CLIP)
    write_shards(place, scenes(COUNT), IS_TRAIN)
    return place


def params(engine: str, **changes: object) -> Params:
    options = {"views": 4, "batch_size": 12, "precision": "auto", "workers": 2, "seed": 0, **changes}
    return parse(Params, {"device": "cpu", "extract": {"engine": engine, **options}})


def actors() -> list[psutil.Process]:
    """The processes of this session's Ray that encode."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.slow
def test_ray_writes_the_same_file_though_a_worker_is_killed(
    here: Path, local_ray: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where another engine stopped; and it says nothing."""
    run(params("local"))
    expected = FEATURES.read_bytes()
    FEATURES.unlink()
    extract_share(params("local"), "0/4")
    done = set(RESUME.glob("extract-*/*.npz"))
    asked: list[Path] = []

    def observed(begin: Any, arguments: Any, groups: Any, *others: Any) -> None:
        asked.extend(groups)
        run_row_groups(begin, arguments, groups, *others)

    monkeypatch.setattr(ray_engine, "run_row_groups", observed)
    killed: list[int] = []
    over = threading.Event()

    def kill_one() -> None:
        while not killed and not over.wait(0.005):
            if set(RESUME.glob("extract-*/*.npz")) > done:  # one has encoded something
                for process in actors()[:1]:
                    process.send_signal(signal.SIGKILL)
                    killed.append(process.pid)

    watch = threading.Thread(target=kill_one)
    watch.start()
    try:
        run(params("ray"))
    finally:
        over.set()
        watch.join()
    assert killed
    assert [int(part.stem) for part in asked] == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert FEATURES.read_bytes() == expected
    assert leftovers(here) == []
    assert capfd.readouterr() == ("", "")


def test_what_goes_wrong_in_an_actor_is_handed_over(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged image is one line from whatever machine; without it, the part is the one that is made here."""
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    lost = SimpleNamespace(lost=SimpleNamespace(remote=lambda number: 0))
    actor = ray_pool._Actor(ray_engine.begin, (params("ray", workers=0),), str(here), lost)
    file = IMAGES / "images-00001.parquet"

    def answer() -> dict[str, Any]:
        return actor({"number": np.array([3]), "file": np.array([str(file)]), "group": np.array([1])})

    extract_share(params("local", workers=0), "7/12")  # the second one of the second file
    [part] = RESUME.glob("extract-*/000007.npz")
    assert (answer()["content"], answer()["error"]) == ([part.read_bytes()], [b""])
    table = pq.read_table(file)
    rows = table.to_pylist()
    rows[7]["image"]["bytes"] = rows[7]["image"]["bytes"][:-200]
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), file, row_group_size=5)
    actor = ray_pool._Actor(ray_engine.begin, (params("ray", workers=0),), str(here), lost)
    found = answer()
    assert found["content"] == [b""]
    with pytest.raises(InputError, match=rf"{file}: image 37 cannot be decoded .* `dvc repro download`$") as error:
        raise pickle.loads(found["error"][0])
    assert "\n" not in str(error.value)


def test_the_loss_of_what_counts_is_handed_over(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get(answer: int) -> int:
        raise ray.exceptions.RayActorError

    monkeypatch.setattr(ray, "get", get)
    lost = SimpleNamespace(lost=SimpleNamespace(remote=lambda number: 0))
    actor = ray_pool._Actor(ray_engine.begin, (params("ray", workers=0),), str(here), lost)
    found = actor({"number": np.array([0]), "file": np.array(["file"]), "group": np.array([0])})
    assert found["content"] == [b""]
    with pytest.raises(OutsideError, match=r"^engine: ray: lost RayActorError .*run it again: what is finished is"):
        raise pickle.loads(found["error"][0])


@pytest.mark.slow
def test_what_always_takes_its_worker_down_ends(
    local_ray: None, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "ATTEMPTS", 2)
    group = {Path("part"): (Path("file"), 0)}
    with pytest.raises(OutsideError, match=r"file: 2 Ray workers were lost over row group 0; .*run it again") as error:
        with ray_machines() as machines:
            run_row_groups(os._exit, (1,), group, machines, 1, False, "die")
    assert "\n" not in str(error.value)
    assert list(workplace.iterdir()) == []


@pytest.mark.slow
def test_ray_encodes_as_this_machine_does(here: Path, local_ray: None) -> None:
    """The codes of a backbone."""
    run(params("local"))
    with Features() as features:
        made_from = features.provenance
    torch.manual_seed(0)
    config = BackboneConfig("timm/resnet10t", None, 512, 16, "uhscm", 32, (0.5,) * 3, (0.2,) * 3)
    save_hashnet(BackboneNet(config, build_backbone(config.model, None)), replace(made_from, stage="train"))
    encode.run(EncodeParams(device="cpu", encode=Encode(engine="local")))
    expected = CODES.read_bytes()
    encode.run(EncodeParams(device="cpu", encode=Encode(engine="ray")))
    assert CODES.read_bytes() == expected
    assert len(set(read_codes().database.tobytes())) > 2
    assert leftovers(here) == []


def test_without_the_package_it_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"engine: ray: install it, `pip install 'conceptbits\[ray\]'`"):
        run(params("ray"))


def test_a_cluster_that_does_not_answer_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(OutsideError, match=f"no answer from RAY_ADDRESS={address} .*; start the cluster"):
            run(params("ray"))


def test_an_address_of_the_client_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "ray://127.0.0.1:10001")
    with pytest.raises(InputError, match=r"^RAY_ADDRESS: ray://127.0.0.1:10001 is of a client of Ray's; set HOST:PORT"):
        run(params("ray"))


def test_devices_are_those_of_the_cluster() -> None:
    """Where the command runs, there may be no GPU."""
    assert [Machines(4, gpus).device("auto") for gpus in (0, 2)] == ["cpu", "cuda"]
    assert Machines(4, 2).device("cpu") == "cpu"
    for machines, on_gpu, lacks in ((Machines(4, 0), True, "GPU"), (Machines(0, 2), False, "1 cores")):
        with pytest.raises(OutsideError, match=f"the cluster has no .*{lacks}"):
            run_row_groups(os._exit, (1,), {Path("part"): (Path("file"), 0)}, machines, 1, on_gpu, "die")


@pytest.mark.slow
def test_ray_is_started_for_the_search_of_shards_and_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last test, since it ends the Ray of the others."""
    ray.shutdown()
    monkeypatch.setattr(ray_pool, "cores", lambda: 2)
    monkeypatch.setattr(ray_pool, "STORE", 100 * 2**20)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    codes, queries = (np.random.default_rng(seed).integers(0, 256, (n, 2), np.uint8) for seed, n in ((0, 900), (1, 3)))
    build(tmp_path / "shards", [codes], 200, Provenance("codes"))
    expected = ShardedIndex(tmp_path / "shards").nearest(queries, 30)
    with ray_machines() as machines:
        assert machines == Machines(2, 0)
        assert signal.getsignal(signal.SIGTERM) is handler
        index = RayShards(tmp_path / "shards", machines)
        for _ in range(2):
            for found, wanted in zip(index.nearest(queries, 30), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)
        with pytest.raises(InputError, match=r"has codes of 16 bits, the queries are uint8 \(3, 1\)"):
            index.nearest(queries[:, :1].copy(), 30)
        del index  # its actors have the cores
        damaged = tmp_path / "shards" / "codes-00002.faiss"
        damaged.write_bytes(b"\xff" * 4 + damaged.read_bytes()[4:])
        with pytest.raises(InputError, match=f"^{damaged}: .*build it again"):
            RayShards(tmp_path / "shards", machines).nearest(queries, 30)
    assert not ray.is_initialized()
    assert capfd.readouterr() == ("", "")
