"""What importing a module costs: nothing runs, and PyTorch and faiss come only where they are used."""

import pkgutil
import subprocess
import sys

import stages

#: Modules that import PyTorch: by name, or all of a package but its config.
NEED_TORCH = {
    "stages.backbone", "stages.decoding", "stages.device", "stages.encoder", "stages.hashnet", "stages.encode.folder",
    "stages.encode.pixels", "stages.encode.stage", "stages.search.change",
    "stages.extract.decoding", "stages.extract.pixels", "stages.extract.ray_engine", "stages.extract.shares",
    "stages.extract.views",
    "stages.scenes.model", "stages.scenes.train_clip", "stages.scenes.zero_shot", "stages.tower",
    "stages.weights.backbone_pinning", "stages.weights.backbone_source", "stages.weights.checkpoint",
    "stages.weights.pinning", "stages.weights.source",
    "stages.train.batches", "stages.train.binarise", "stages.train.checkpoint", "stages.train.codebook",
    "stages.train.distributed", "stages.train.estep", "stages.train.image_batches", "stages.train.losses",
    "stages.train.networks", "stages.train.semantics", "stages.train.stage", "stages.train.streamed",
    "stages.train.trainer", "stages.train.whole_batch",
    "stages.benchmark.cells", "stages.benchmark.dvc_queue", "stages.benchmark.search", "stages.benchmark.stage",
    "stages.benchmark.work",
}  # fmt: skip
#: Modules that import faiss: those of the index and of what searches it.
NEED_FAISS = {
    "stages.index.binary", "stages.index.export", "stages.index.files", "stages.index.opened", "stages.index.sharded",
    "stages.index.sharded_command", "stages.index.sharded_ray", "stages.index.stage",
    "stages.search.command", "stages.search.searcher",
    "stages.serve.answers", "stages.serve.app", "stages.serve.command", "stages.serve.points",
}  # fmt: skip
PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    for heavy in ("torch", "faiss", "open_clip"):
        if heavy in sys.modules:
            sys.exit(f"{name} imports {heavy}")
"""


def test_only_what_uses_torch_or_faiss_imports_it():
    modules = {module.name for module in pkgutil.walk_packages(stages.__path__, "stages.")}
    methods = {name for name in modules if name.startswith("stages.train.methods.")}
    assert modules >= NEED_TORCH | NEED_FAISS, "a list names modules that are gone"
    light = sorted(modules - NEED_TORCH - NEED_FAISS - methods)
    assert len(light) > 100
    done = subprocess.run([sys.executable, "-c", PROGRAM, *light], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_list_of_commands_imports_next_to_nothing():
    code = "import sys; from stages.__main__ import main; sys.argv[1:] = ['--help']; main()"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, timeout=60)
    imported = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert done.returncode == 0 and "typer" in imported
    assert imported.isdisjoint({"numpy", "pydantic", "pyarrow", "pandas", "h5py", "PIL", "torch"})
