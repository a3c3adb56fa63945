"""Which module reads which data set: ``dataset.name`` to a function that opens it.

A new data set is a module in ``stages/download/datasets/``, a line here, a name in ``config.py`` and a card in
``docs/data/``.
"""

from collections.abc import Callable, Mapping

from stages.download.config import DatasetName, DatasetOptions
from stages.download.datasets.cifar import cifar10, cifar100
from stages.download.datasets.coco import coco2014, coco2017
from stages.download.datasets.csv_list import csv_list
from stages.download.datasets.embeddings import embeddings
from stages.download.datasets.fashion_mnist import fashion_mnist
from stages.download.datasets.imagefolder import imagefolder
from stages.download.datasets.mirflickr25k import mirflickr25k
from stages.download.datasets.nuswide import nuswide
from stages.download.datasets.parquet import parquet
from stages.download.datasets.scenes import scenes
from stages.download.datasets.webdataset import webdataset
from stages.download.source import Source

DATASETS: Mapping[DatasetName, Callable[[DatasetOptions], Source]] = {
    "scenes": scenes,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "mirflickr25k": mirflickr25k,
    "nuswide": nuswide,
    "coco2014": coco2014,
    "coco2017": coco2017,
    "imagefolder": imagefolder,
    "parquet": parquet,
    "webdataset": webdataset,
    "csv": csv_list,
    "embeddings": embeddings,
}
