"""The executor agrees with ONNX Runtime, trains, and gives its weights back."""

from __future__ import annotations

import copy

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from tests.engine import nets
from tests.engine.graph.channels import corner_nets
from workers.engine import errors, formats
from workers.engine.graph import execute, match, shapes, verify


@pytest.fixture(params=nets.NETS)
def net(request, tmp_path):
    """Name, path, graph and inputs of each net."""
    model = nets.NETS[request.param](0)
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return request.param, path, formats.load(path), model


def _load(name, tmp_path, seed=0):
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(nets.NETS[name](seed).SerializeToString())
    return formats.load(path)


def _reference(path, feeds):
    return ort.InferenceSession(path).run(None, feeds)


def _tensors(feeds):
    return [torch.from_numpy(array) for array in feeds.values()]


@pytest.mark.parametrize("batch", [1, 5])
def test_a_run_agrees_with_onnx_runtime_at_every_batch(net, batch):
    _, path, graph, model = net
    feeds = nets.feeds(model, batch)
    (got,) = execute.run(graph, feeds).values()
    np.testing.assert_allclose(got, _reference(path, feeds)[0], rtol=1e-4, atol=1e-5)


def test_every_weight_gets_a_gradient(net):
    _, _, graph, model = net
    module = execute.as_module(graph)
    (output,) = module(*_tensors(nets.feeds(model)))
    output.square().sum().backward()
    assert module.weights
    assert all(weight.grad is not None for weight in module.weights.values())
    assert sorted(module.weights) == sorted(graph.parameters())


def test_trained_weights_reach_the_saved_file(net, tmp_path):
    _, _, graph, model = net
    feeds, module = nets.feeds(model), execute.as_module(graph)
    optimizer = torch.optim.SGD(module.parameters(), 1e-2)
    module.train()
    for _ in range(2):
        optimizer.zero_grad()
        module(*_tensors(feeds))[0].square().mean().backward()
        optimizer.step()
    execute.write_back(module, graph)
    formats.save(graph, tmp_path / "trained.onnx")
    with torch.no_grad():
        (want,) = module.eval()(*_tensors(feeds))
    got = _reference(tmp_path / "trained.onnx", feeds)[0]
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


def test_a_copy_is_independent_and_states_move_between_copies(net):
    _, _, graph, model = net
    inputs = _tensors(nets.feeds(model))
    module = execute.as_module(graph).eval()
    twin = copy.deepcopy(module)
    before = module(*inputs)[0].detach()
    with torch.no_grad():
        for weight in twin.parameters():
            weight.mul_(0.5)
    assert torch.equal(module(*inputs)[0], before)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(*inputs)[0], before)


def test_batch_normalisation_learns_its_statistics_in_training_only(tmp_path):
    graph = _load("plain_cnn", tmp_path)
    module = execute.as_module(graph)
    before = {name: value.clone() for name, value in module.statistics.items()}
    image = torch.randn(16, 1, 8, 8) * 3
    module.eval()(image)
    assert all(torch.equal(module.statistics[name], before[name]) for name in before)
    module.train()(image)
    assert not any(torch.equal(module.statistics[name], before[name]) for name in before)
    execute.write_back(module, graph)
    name = next(iter(before))
    np.testing.assert_array_equal(graph.weight(name), module.statistics[name].numpy())


@pytest.mark.parametrize("training", [True, False])
def test_statistics_that_the_network_computes_get_gradients(training, tmp_path):
    """A standardized filter changes neither with its mean nor with its length, so neither has a gradient."""
    model = corner_nets.standardized_weights()
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    module = execute.as_module(formats.load(tmp_path / "net.onnx")).train(training)
    (output,) = module(*_tensors(nets.feeds(model)))
    (output * torch.linspace(-1, 1, 10)).sum().backward()
    (filters,) = (w for w in module.weights.values() if w.shape == (8, 6, 3, 3))
    slope, w = filters.grad.flatten(1), filters.detach().flatten(1)
    assert slope.norm(dim=1).min() > 1e-3
    torch.testing.assert_close(slope.sum(1), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close((slope * w).sum(1), torch.zeros(8), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("kind", "options"), [("Group", {"num_groups": 6}), ("Instance", {})])
def test_a_single_value_is_its_own_mean(kind, options, tmp_path):
    """One value to a group, as behind a global pooling of one sample: the answer is the bias, in ONNX Runtime too."""
    b = nets.Builder(0, opset=21)
    scale, bias = b.random("scale", 6, fan_in=1), b.bias(6)
    x = b.op(f"{kind}Normalization", b.op("GlobalAveragePool", "image"), scale, bias, **options)
    model = b.model([("image", 1, ("batch", 6, 8, 8))], b.gemm(b.op("Flatten", x), 6, nets.CLASSES))
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    feeds, graph = nets.feeds(model, 1), formats.load(path)
    (got,) = execute.run(graph, feeds).values()
    np.testing.assert_allclose(got, _reference(path, feeds)[0], atol=1e-5)
    execute.as_module(graph).train()(*_tensors(feeds))[0].sum().backward()


def test_dropout_drops_in_training_only(tmp_path):
    module = execute.as_module(_load("matmul_mlp", tmp_path))
    x = torch.randn(8, 64)
    assert not torch.equal(module.train()(x)[0], module(x)[0])
    assert torch.equal(module.eval()(x)[0], module(x)[0])


def test_numbers_of_a_gelu_are_constants_and_position_embeddings_are_weights(tmp_path):
    parameters = _load("vision_transformer", tmp_path).parameters()
    assert any(name.startswith("position") for name in parameters)
    assert not any(name.startswith("number") for name in parameters)


def test_inner_values_can_be_observed(tmp_path):
    graph = _load("plain_cnn", tmp_path)
    feeds = nets.feeds(nets.plain_cnn(), batch=3)
    names = [node.outputs[0].name for node in graph.nodes if node.op_type == "Relu"]
    seen = execute.observe(graph, feeds, [*names, "image", "logits"])
    assert all((seen[name] >= 0).all() for name in names)
    assert seen["logits"].shape == (3, 10)
    np.testing.assert_array_equal(seen["image"], feeds["image"])


def test_a_missing_input_is_named(tmp_path):
    graph = _load("two_inputs", tmp_path)
    with pytest.raises(errors.BadModel, match="features"):
        execute.run(graph, {"image": np.zeros((1, 1, 8, 8), np.float32)})
    with pytest.raises(TypeError, match="2 inputs"):
        execute.as_module(graph)(torch.zeros(1, 1, 8, 8))


def test_an_error_inside_names_the_node(tmp_path):
    module = execute.as_module(_load("mlp", tmp_path))
    with pytest.raises(RuntimeError) as caught:
        module(torch.zeros(2, 63))
    assert "Gemm" in caught.value.__notes__[0]


def test_inferred_shapes_are_those_of_a_run(net):
    _, _, graph, model = net
    feeds = nets.feeds(model, batch=3)
    inferred = shapes.infer(graph, shapes.example_shapes(graph, batch=3))
    names = [output.name for node in graph.nodes for output in node.outputs]
    seen = execute.observe(graph, feeds, names)
    assert {name: inferred[name] for name in names} == {n: a.shape for n, a in seen.items()}


def test_macs_are_those_counted_by_hand(tmp_path):
    graph = _load("plain_cnn", tmp_path)
    by_operator = shapes.macs_by_operator(graph, shapes.example_shapes(graph))
    assert by_operator == {
        "Conv": 8 * 64 * 9 + 16 * 16 * 8 * 9,
        "Gemm": 256 * 32 + 32 * 10,
    }
    twice = shapes.macs_by_operator(graph, shapes.example_shapes(graph, batch=2))
    assert twice == {kind: 2 * count for kind, count in by_operator.items()}


def test_open_axes_come_from_the_dataset_or_are_refused(tmp_path):
    graph = _load("mlp", tmp_path)
    graph.inputs[0].shape = ir.Shape(["batch", "features"])
    with pytest.raises(errors.Unsupported, match="features"):
        shapes.example_shapes(graph)
    assert shapes.example_shapes(graph, 2, given={"x": (100, 64)}) == {"x": (2, 64)}


def test_layers_are_found_with_their_axes(net):
    name, _, graph, _ = net
    layers = match.layers(graph)
    kinds = {node.op_type for node in graph.nodes} & set(match.KINDS)
    assert {layer.kind for layer in layers} == kinds
    for layer in layers:
        weight = graph.weight(layer.weight)
        assert layer.bias is None or graph.weight(layer.bias).shape == (
            weight.shape[layer.out_axis],
        ), (name, layer)


def test_weights_that_are_no_layers_have_a_reason(tmp_path):
    reasons = match.not_layers(_load("text_transformer", tmp_path))
    assert any("looked up" in reason for reason in reasons.values())


def test_a_clone_is_independent(net):
    _, _, graph, model = net
    feeds = nets.feeds(model)
    before = execute.run(graph, feeds)
    other = graph.clone()
    for name, array in other.parameters().items():
        other.set_weight(name, array * 0)
    verify.verify(other)
    after = execute.run(graph, feeds)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_module_on_another_device_keeps_shape_arithmetic_on_the_host(net):
    """The meta device stands for an accelerator: whatever must not leave the host would fail here."""
    _, _, graph, model = net
    feeds = nets.feeds(model, batch=3)
    module = execute.as_module(graph).to("meta").eval()
    (output,) = module(*(x.to("meta") for x in _tensors(feeds)))
    (want,) = execute.run(graph, feeds).values()
    assert output.device.type == "meta"
    assert tuple(output.shape) == want.shape


def test_mixed_precision_trains(net):
    _, _, graph, model = net
    module = execute.as_module(graph).train()
    with torch.autocast("cpu", torch.bfloat16):
        (output,) = module(*_tensors(nets.feeds(model)))
    output.float().square().mean().backward()
    assert all(weight.grad.isfinite().all() for weight in module.weights.values())
