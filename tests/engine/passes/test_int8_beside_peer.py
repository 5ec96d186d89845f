"""quantize.int8 beside ONNX Runtime's own quantize_static: same data, same ranges, same bits."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime import quantization

from modelpress.spec.quantize import QuantizeInt8
from tests.engine import jobs, nets
from workers.engine import formats, passes

NAMES = ("plain_cnn", "residual_cnn", "grouped_cnn", "mlp", "matmul_mlp", "vision_transformer")
"""Without concat_cnn, whose Resize the peer's preparation can't follow."""


class Batch(quantization.CalibrationDataReader):
    """The whole calibration set as one batch."""

    def __init__(self, feeds):
        self.feeds = [feeds]

    def get_next(self):
        return self.feeds.pop() if self.feeds else None


def peer(model, feeds, folder):
    """What quantize_static makes, after the preparation that its documentation asks for."""
    onnx.save(model, folder / "float.onnx")
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.shape_inference.quant_pre_process(
            str(folder / "float.onnx"), str(folder / "prepared.onnx")
        )
        quantization.quantize_static(
            str(folder / "prepared.onnx"),
            str(folder / "peer.onnx"),
            Batch(feeds),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
        )
    logging.disable(logging.NOTSET)
    return folder / "peer.onnx"


@pytest.mark.parametrize("name", NAMES)
def test_errors_and_files_are_no_larger(name, tmp_path):
    model, graph = jobs.load(name, tmp_path)
    train = jobs.dataset_of(model)
    ctx = jobs.context_of(graph, tmp_path, train)
    formats.save(passes.apply(graph, QuantizeInt8(reduce_range=True), ctx), tmp_path / "ours.onnx")
    other = peer(model, train.batch(np.arange(train.samples)), tmp_path)
    feeds = nets.feeds(model, 256, seed=9)
    float_, ours, theirs = (
        onnxruntime.InferenceSession(path).run(None, feeds)[0]
        for path in (tmp_path / f"{name}.onnx", tmp_path / "ours.onnx", other)
    )
    assert np.linalg.norm(ours - float_) <= 1.1 * np.linalg.norm(theirs - float_)
    assert (tmp_path / "ours.onnx").stat().st_size <= 1.02 * other.stat().st_size
