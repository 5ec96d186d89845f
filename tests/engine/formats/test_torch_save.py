"""A graph becomes a .pt2 file that stock torch runs and trains, with nothing of ours installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.engine import exported, jobs, nets
from workers.engine import formats
from workers.engine.errors import Unsupported
from workers.engine.formats import quiet, torch_export, torch_save
from workers.engine.graph import execute

STOCK = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
module = torch.export.load(sys.argv[1]).module()
feeds = np.load(sys.argv[2])
module(*(torch.from_numpy(feeds[name]) for name in feeds)).square().mean().backward()
assert all(p.grad is not None for p in module.parameters())
output = module(*(torch.from_numpy(feeds[name]) for name in feeds))
np.save(sys.argv[3], output.detach().numpy())
ours = {"modelpress", "workers", "onnx", "onnx_ir", "onnxruntime"} & {m.partition(".")[0] for m in sys.modules}
assert not ours, ours
"""


@pytest.mark.parametrize(
    "name", ["residual_cnn", "upsampling_cnn", "text_transformer", "two_inputs"]
)
def test_exported_network_computes_the_same_for_any_batch(name: str, tmp_path: Path) -> None:
    model, graph = jobs.load(name, tmp_path)
    path = tmp_path / "model.pt2"
    torch_save.save(graph, path, nets.feeds(model, 2))
    for batch in (1, 6):
        feeds = nets.feeds(model, batch, seed=batch)
        inputs = [torch.from_numpy(feeds[value.name]) for value in graph.inputs]
        ours = execute.run(graph, feeds)
        for wanted, found in zip(ours.values(), exported.run_torch(path, *inputs), strict=True):
            np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


def test_stock_torch_runs_and_trains_it_in_a_fresh_process(tmp_path: Path) -> None:
    model, graph = jobs.load("plain_cnn", tmp_path)
    torch_save.save(graph, tmp_path / "model.pt2", nets.feeds(model, 2))
    feeds = nets.feeds(model, 5)
    np.savez(tmp_path / "feeds.npz", **feeds)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    names = ("../model.pt2", "../feeds.npz", "out.npy")
    done = subprocess.run(
        [sys.executable, "-I", "-c", STOCK, *names],
        cwd=elsewhere,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    [wanted] = execute.run(graph, feeds).values()
    np.testing.assert_allclose(np.load(elsewhere / "out.npy"), wanted, atol=1e-6)


def test_file_is_reproducible_and_holds_no_pickle_and_no_path_of_this_machine(
    tmp_path: Path,
) -> None:
    model, graph = jobs.load("mlp", tmp_path)
    for name in ("a", "b"):
        torch_save.save(graph, tmp_path / name, nets.feeds(model, 2))
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    assert b"workers" not in content
    with zipfile.ZipFile(tmp_path / "a") as archive:
        [sample] = [name for name in archive.namelist() if name.endswith(".pt")]
        assert archive.read(sample) == b""


def test_names_survive_the_way_in_and_out_and_in_again(tmp_path: Path) -> None:
    """A network of PyTorch comes back with its own state_dict, and the file can be uploaded again."""
    path = exported.save(
        exported.network("convolutional"), exported.sample("convolutional", 2), tmp_path / "in.pt2"
    )
    graph = torch_export.convert(path, tmp_path)
    example = {"image": exported.sample("convolutional", 1).numpy()}
    torch_save.save(graph, tmp_path / "out.pt2", example)
    with quiet.quiet():
        program = torch.export.load(tmp_path / "out.pt2")
    names = set(exported.network("convolutional").state_dict()) - {"bn.num_batches_tracked"}
    assert set(program.state_dict) == names
    assert program.graph_signature.user_inputs == ("image",)
    again = torch_export.convert(tmp_path / "out.pt2", tmp_path)
    assert str(again.inputs[0].shape[0]) == "batch"
    inputs = exported.sample("convolutional", 5)
    [wanted] = exported.run_torch(path, inputs)
    [found] = execute.run(again, {"image": inputs.numpy()}).values()
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)


def test_codes_stay_codes(tmp_path: Path) -> None:
    """A weight in int8 is kept in int8, and computed with as ONNX says."""
    model = jobs.text(
        "quantized (float[N, 8] x) => (float[N, 4] y) <float[4, 8] w> {"
        " scale = Constant<value = float {0.02}>() zero = Constant<value = int8 {0}>()"
        " q = QuantizeLinear(w, scale, zero) d = DequantizeLinear(q, scale, zero)"
        " t = Transpose(d) y = MatMul(x, t) }"
    )
    onnx.save(model, tmp_path / "model.onnx")
    graph = formats.load(tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    torch_save.save(graph, tmp_path / "model.pt2", {"x": x})
    [found] = exported.run_torch(tmp_path / "model.pt2", torch.from_numpy(x))
    np.testing.assert_allclose(found.numpy(), execute.run(graph, {"x": x})["y"], atol=1e-6)


def test_network_whose_shapes_depend_on_the_data_is_refused(tmp_path: Path) -> None:
    model = jobs.text(
        "dependent (float[N, 4] x, int64[1] size) => (float[M, 2] y) {"
        " two = Constant<value = int64[1] {2}>() shape = Concat<axis = 0>(size, two)"
        " y = Reshape(x, shape) }"
    )
    onnx.save(model, tmp_path / "model.onnx")
    graph = formats.load(tmp_path / "model.onnx")
    feeds = {"x": np.zeros((2, 4), np.float32), "size": np.array([4])}
    with pytest.raises(Unsupported, match="Reshape") as raised:
        torch_save.save(graph, tmp_path / "model.pt2", feeds)
    assert raised.value.hint
