"""A state_dict and the name of its architecture become ONNX: timm's network with these weights, or a refusal that says why."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.engine import architectures as nets
from workers.engine import formats
from workers.engine.errors import BadModel, ExportMismatch, Unsupported
from workers.engine.formats import architectures, state_dict
from workers.engine.graph import Graph

Converted = tuple[Path, Graph, tuple[str, ...]]


def converted(name: str, folder: Path, architecture: str, **options: int) -> Converted:
    sent = nets.save(nets.network(name, **options), folder / "sent.safetensors")
    graph, notes = state_dict.convert(sent, architecture, folder)
    formats.save(graph, folder / "made.onnx")
    return folder / "made.onnx", graph, notes


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """With the classes and channels of its weights, and named by a pretrained one's tag."""
    folder = tmp_path_factory.mktemp("resnet")
    name = "test_resnet.r160_in1k"
    return converted("test_resnet", folder, name, num_classes=7, in_chans=1)


def test_network_answers_as_torch_does_for_any_batch(resnet: Converted) -> None:
    path, graph, notes = resnet
    network = nets.network("test_resnet", num_classes=7, in_chans=1)
    assert [str(value.shape) for value in graph.inputs] == ["[batch,1,160,160]"]
    assert [str(value.shape) for value in graph.outputs] == ["[batch,7]"]
    for batch in (1, 5):
        assert nets.differ(path, network, nets.images(batch, channels=1)) < 1e-4
    assert "std" in notes[0]


def test_normalization_is_kept_and_parameters_keep_their_names(resnet: Converted) -> None:
    assert "BatchNormalization" in {node.op_type for node in resnet[1].nodes}
    network = nets.network("test_resnet", num_classes=7, in_chans=1)
    names = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    assert names <= set(resnet[1].initializers)


def test_attention_without_a_classifier_answers_its_features(tmp_path: Path) -> None:
    path, graph, notes = converted("test_vit", tmp_path, "test_vit", num_classes=0)
    network = nets.network("test_vit", num_classes=0)
    assert [str(value.shape) for value in graph.outputs] == ["[batch,64]"]
    assert nets.differ(path, network, nets.images(3)) < 1e-4
    assert any("features" in note for note in notes)


def test_half_precision_is_widened() -> None:
    network = nets.network("test_resnet").half()
    built = architectures.build("test_resnet", network.state_dict())
    assert {p.dtype for p in built.network.parameters()} == {torch.float32}
    assert torch.equal(built.network.state_dict()["fc.weight"], network.state_dict()["fc.weight"])
    assert any("half" in note for note in built.notes)


def test_counters_of_normalization_may_be_left_out() -> None:
    weights = nets.network("test_resnet").state_dict()
    kept = {key: weights[key] for key in weights if not key.endswith("num_batches_tracked")}
    assert len(kept) < len(weights)
    assert architectures.build("test_resnet", kept).input_shape == (3, 160, 160)


def test_building_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    weights = nets.network("test_vit").state_dict()
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    architectures.build("test_vit.r160_in1k", weights)


# what is refused


def without(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: weights[key] for key in weights if key != "fc.bias"}


def with_more(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "ema.decay": torch.zeros(1)}


def with_another_shape(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "bn1.weight": torch.zeros(9)}


def with_another_type(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "bn1.weight": weights["bn1.weight"].int()}


def wrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{key}": weights[key] for key in weights}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without, r"1 missing: fc\.bias"),
        (with_more, r"1 unexpected: ema\.decay"),
        (with_another_shape, r"bn1\.weight \[9\], not \[\d+\]"),
        (with_another_type, r"bn1\.weight torch\.int32, not torch\.float32"),
        (wrapped, r"missing: .* and \d+ more; .* unexpected: module\."),
    ],
)
def test_weights_of_another_network_are_refused_with_names(change, said) -> None:
    weights = change(nets.network("test_resnet").state_dict())
    with pytest.raises(BadModel, match=said) as raised:
        architectures.build("test_resnet", weights)
    assert ("module." in raised.value.hint) == (change is wrapped)


@pytest.mark.parametrize("name", ["test_resnett", "Test_ResNet", "test-resnet.r160_in1k"])
def test_unknown_architecture_is_refused_with_near_names(name: str) -> None:
    with pytest.raises(BadModel, match=name) as raised:
        architectures.build(name, {"a": torch.zeros(1)})
    assert "test_resnet" in raised.value.hint


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/etc", "*", "resnet18.mine"])
def test_names_that_lead_elsewhere_are_no_architectures(name: str) -> None:
    with pytest.raises(BadModel, match="no architecture"):
        architectures.build(name, {"a": torch.zeros(1)})


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    network = nets.network("test_byobnet")
    network.head.fc.bias.data[0] = torch.nan
    sent = nets.save(network, tmp_path / "sent.safetensors")
    with pytest.raises(BadModel, match="NaN"):
        state_dict.convert(sent, "test_byobnet", tmp_path)


def test_graph_that_answers_something_else_is_refused(resnet: Converted) -> None:
    network, images = nets.network("test_resnet", num_classes=7, in_chans=1), nets.images(1, 1)
    state_dict._compare(resnet[1], images, state_dict._answers(network, images))
    network.fc.bias.data += 1
    with pytest.raises(ExportMismatch, match="differs from torch by"):
        state_dict._compare(resnet[1], images, state_dict._answers(network, images))


@pytest.mark.parametrize("lacking", ["timm", "torchvision"])
def test_worker_without_the_extra_says_so(
    lacking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "sent.safetensors")
    monkeypatch.setitem(sys.modules, lacking, None)
    with pytest.raises(Unsupported, match=lacking) as raised:
        state_dict.convert(tmp_path / "sent.safetensors", "resnet18", tmp_path)
    assert "pip install 'modelpress[worker,timm]'" in raised.value.hint
