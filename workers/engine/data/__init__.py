"""Datasets: .npz files and zips of image folders, opened as mapped arrays within strict limits.

open      a file, for a model's inputs -> Dataset
inspect   a file, before any model is known -> DatasetInspection
split     a Dataset -> train and eval
"""

from __future__ import annotations

from workers.engine.data.dataset import Dataset, check_same_classes, split
from workers.engine.data.inspection import inspect
from workers.engine.data.opening import open
from workers.engine.data.values import check_classes

__all__ = ["Dataset", "check_classes", "check_same_classes", "inspect", "open", "split"]
