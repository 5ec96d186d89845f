"""quantize.binary: weights of one bit or three values, trained behind the binary ones, stored packed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pydantic import ValidationError

from modelpress.spec.quantize import QuantizeBinary
from tests.engine import jobs
from workers.engine import formats
from workers.engine.errors import NothingChanged, Unsupported
from workers.engine.graph import Graph, execute, match, verify
from workers.engine.kernels import xnor
from workers.engine.measure import session, size
from workers.engine.passes.quantize import _binarize, _kernel, _signs, binary

TRAINING = {"epochs": 1, "batch_size": 24}


def binarized(
    tmp_path: Path, net: str = "mlp", **options
) -> tuple[Graph, Graph, jobs.Context, onnx.ModelProto]:
    """A net before and after, what was reported, and the net as a model."""
    model, graph = jobs.load(net, tmp_path)
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    step = QuantizeBinary(**{"training": TRAINING, "float_ends": False, **options})
    after = binary.apply(graph.clone(), step, ctx)
    verify.verify(after)
    return graph, after, ctx, model


def weights(graph: Graph) -> dict[str, np.ndarray]:
    """What layers multiply by, where it is computed."""
    nodes = [node for node in graph.nodes if node.op_type in match.KINDS]
    names = [node.inputs[1].name or "" for node in nodes if node.inputs[1].producer() is not None]
    module = execute.as_module(graph).eval()
    feeds = [torch.zeros([d if isinstance(d, int) else 1 for d in v.shape]) for v in graph.inputs]
    with torch.no_grad():
        found = module.values(feeds, names)
    return {name: value.numpy() for name, value in found.items()}


def test_weights_are_two_values_for_each_filter_with_bwn(tmp_path):
    _, after, _, _ = binarized(tmp_path, "plain_cnn")
    found = weights(after)
    assert len(found) == 4
    for weight in found.values():
        for row in weight.reshape(len(weight), -1):
            assert len(set(np.abs(row))) == 1


@pytest.mark.parametrize("method", ["binary_connect", "bnn"])
def test_weights_are_two_values_for_each_layer_with_one_scale(tmp_path, method):
    before, after, _, _ = binarized(tmp_path, method=method)
    for weight, layer in zip(weights(after).values(), match.layers(before), strict=True):
        (scale,) = set(np.abs(weight).reshape(-1))
        assert scale == pytest.approx(np.abs(before.weight(layer.weight)).mean(), rel=1e-6)


def test_weights_are_three_values_with_ternary(tmp_path):
    _, after, _, _ = binarized(tmp_path, "plain_cnn", method="ternary")
    for weight in weights(after).values():
        assert (weight == 0).any()
        for row in weight.reshape(len(weight), -1):
            assert len(set(np.abs(row)) - {0.0}) == 1


@pytest.mark.parametrize(("method", "share"), [("bwn", 1 / 32), ("ternary", 1 / 20)])
def test_the_file_has_eight_weights_in_a_byte_or_five_of_three_values(tmp_path, method, share):
    before, after, _, _ = binarized(tmp_path, "plain_cnn", method=method)
    formats.save(after, tmp_path / "after.onnx")
    stored = [after.weight(name).nbytes for name in after.initializers if name.endswith("_codes")]
    floats = [before.weight(layer.weight).nbytes for layer in match.layers(before)]
    assert sum(stored) == pytest.approx(share * sum(floats), rel=0.01)
    got = size.measure(tmp_path / "after.onnx", after)
    scales = sum(after.weight(n).size for n in after.initializers if n.endswith("_scale"))
    assert got.parameters == sum(a.size for a in before.parameters().values()) + scales


@pytest.mark.parametrize("method", ["bwn", "binary_connect", "ternary"])
def test_onnx_runtime_unpacks_the_weights_of_the_executor_bit_by_bit(tmp_path, method):
    _, after, _, _ = binarized(tmp_path, method=method)
    path, written = tmp_path / "after.onnx", tmp_path / "written.onnx"
    formats.save(after, path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(written)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options)
    optimized = onnx.load(written)
    assert not {"Div", "Mod", "Cast"} & {node.op_type for node in optimized.graph.node}
    arrays = {w.name: onnx.numpy_helper.to_array(w) for w in optimized.graph.initializer}
    for name, weight in weights(after).items():
        assert np.array_equal(arrays[name], weight)


def test_signs_of_the_file_are_those_of_training(tmp_path):
    """Places through which the sign goes, against the operators that take their place."""
    model, graph = jobs.load("plain_cnn", tmp_path)
    feeds = jobs.nets.feeds(model, 6)
    found = execute.observe(graph, feeds, [v.name for n in graph.nodes for v in n.outputs])
    ranks = {name: value.ndim for name, value in found.items()}
    signs = _signs.place(graph, match.layers(graph), ranks, _signs.trained_values(graph))
    module = execute.as_module(graph).eval()
    image = torch.from_numpy(feeds["image"])
    image[:, :, :4] = 0  # some values are exactly zero before the sign
    (trained,) = module.run_with({}, [image], dict.fromkeys(signs.places, _binarize.sign))
    (unsigned,) = module(image)
    _signs.finish(graph, signs)
    assert len(signs.places) == 3
    stored = execute.run(graph, {"image": image.numpy()})["logits"]
    assert np.array_equal(stored, trained.detach().numpy())
    assert not np.allclose(stored, unsigned.detach().numpy())


def test_first_and_last_layer_stay_in_float_where_the_paper_leaves_them(tmp_path):
    before, after, ctx, _ = binarized(tmp_path, "plain_cnn", float_ends=None)
    layers = [layer.weight for layer in match.layers(before)]
    assert [name in after.initializers for name in layers] == [True, False, False, True]
    reasons = {s.layer: s.reason for s in ctx.coverage.skipped}
    assert reasons[layers[0]] == "first or last layer: stays in float with bwn"


def test_a_network_of_ends_alone_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(NothingChanged, match="there are no others") as refused:
        binarized(tmp_path, "matmul_mlp", float_ends=None)
    assert refused.value.hint == "set float_ends to false"


def test_rectifiers_before_signs_go_and_normalization_comes(tmp_path):
    """mlp: Gemm -> Relu -> Gemm -> Tanh -> Gemm, without normalization."""
    _, after, ctx, _ = binarized(tmp_path, method="bnn")
    kinds = [node.op_type for node in after.nodes]
    assert not {"Relu", "Tanh", "Identity_sign"} & set(kinds)
    assert kinds.count("BatchNormalization") == kinds.count("Where") == 2
    changes = [touched.change for touched in ctx.coverage.touched]
    assert "inputs in float: it comes from the network's input" in changes[0]
    assert all("inputs of 1 bit" in change for change in changes[1:])


def test_normalization_that_is_there_is_used(tmp_path):
    """plain_cnn: BatchNormalization -> Relu -> MaxPool -> Conv; the Relu goes, nothing is added for convolutions."""
    before, after, _, _ = binarized(tmp_path, "plain_cnn", method="xnor")
    added = [n for n in after.nodes if n.op_type == "BatchNormalization"]
    there = [n for n in before.nodes if n.op_type == "BatchNormalization"]
    assert len(added) == len(there) + 1  # before the last Gemm


def test_layers_multiply_signs_and_nothing_else(tmp_path):
    _, after, _, model = binarized(tmp_path, "residual_cnn", method="bnn")
    convs = [node for node in after.nodes if node.op_type == "Conv"]
    names = [node.inputs[0].name or "" for node in convs[1:]]
    feeds = jobs.nets.feeds(model, 3)
    for value in execute.observe(after, feeds, names).values():
        assert set(np.unique(value)) == {-1.0, 1.0}


def test_convolutions_of_signs_are_padded_with_ones(tmp_path):
    _, after, _, model = binarized(tmp_path, "residual_cnn", method="bnn")
    convs = [node for node in after.nodes if node.op_type == "Conv"]
    assert all(not any(node.attributes["pads"].as_ints()) for node in convs[1:])
    pads = [node for node in after.nodes if node.op_type == "Pad"]
    values = execute.observe(after, jobs.nets.feeds(model, 3), [p.outputs[0].name for p in pads])
    for value in values.values():
        assert (value[:, :, 0] == 1).all()


def test_tokens_without_normalization_keep_float_activations(tmp_path):
    _, _, ctx, _ = binarized(tmp_path, "vision_transformer", method="bnn")
    changes = [t.change for t in ctx.coverage.touched]
    assert any("it has 3 axes and no normalization before it" in change for change in changes)
    assert any("inputs of 1 bit" in change for change in changes)


def test_fixed_batches_have_no_signs_of_activations(tmp_path):
    model = jobs.text(
        "g (float[4, 64] x) => (float[4, 10] y) <int64[2] shape = {4, 64}, float[64, 10] w, float[10, 10] v> "
        "{ f = Reshape(x, shape) h = MatMul(f, w) y = MatMul(h, v) }"
    )
    (tmp_path / "fixed.onnx").write_bytes(model.SerializeToString())
    graph = formats.load(tmp_path / "fixed.onnx")
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(model))
    with pytest.raises(Unsupported, match="runs batches of 4 and no other"):
        binary.apply(graph, QuantizeBinary(method="bnn", training=TRAINING), ctx)


TWO_LAYERS = "{ h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"


def signed(tmp_path: Path, source: str, training: dict[str, object]) -> jobs.Context:
    """What bnn reports of a network that is given as text."""
    path = tmp_path / "net.onnx"
    model = jobs.text(source)
    onnx.save(model, path)
    graph = formats.load(path)
    free = jobs.text(source.replace("[4,", "[n,"))
    ctx = jobs.context_of(graph, tmp_path, jobs.dataset_of(free))
    step = QuantizeBinary(method="bnn", float_ends=False, training=training)
    verify.verify(binary.apply(graph, step, ctx))
    return ctx


def test_a_batch_that_is_declared_fixed_is_kept_where_the_kernels_are_timed(tmp_path):
    """Its operators take any batch, so that it can be trained; ONNX Runtime takes no other than the declared."""
    weights = "<float[64, 20] w, float[20, 10] v>"
    source = f"g (float[4, 64] x) => (float[4, 10] y) {weights} {TWO_LAYERS}"
    timed = signed(tmp_path, source, TRAINING).coverage.latency_packed
    assert timed is not None
    assert timed.batch == 4


@pytest.mark.parametrize(("dtype", "number"), [("double", 11), ("float16", 10)])
def test_signs_have_the_type_of_the_network(tmp_path, dtype, number):
    weights = f"<{dtype}[64, 20] w, {dtype}[20, 10] v>"
    layers = f"{{ c = Cast <to = {number}> (x) h = MatMul(c, w) r = Relu(h) y = MatMul(r, v) }}"
    source = f"g (float[n, 64] x) => ({dtype}[n, 10] y) {weights} {layers}"
    slow = {**TRAINING, "optimizer": "sgd", "learning_rate": 1e-4}
    ctx = signed(tmp_path, source, slow)
    assert any("the kernels give float32" in note for note in ctx.coverage.notes)


def test_the_sign_of_zero_is_one_and_the_gradient_stops_beyond_one():
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, -0.0, 0.5, 1.0, 2.0], requires_grad=True)
    y = _binarize.sign(x)
    y.sum().backward()
    assert y.tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 1, 0]


def layer_of(tmp_path: Path) -> tuple[np.ndarray, match.Layer]:
    _, graph = jobs.load("mlp", tmp_path)
    layer = match.layers(graph)[0]
    return graph.weight(layer.weight).copy(), layer


@pytest.mark.parametrize("method", ["bwn", "xnor", "binary_connect", "bnn", "ternary"])
def test_codes_shift_and_scale_give_the_weights_that_were_run(tmp_path, method):
    weight, layer = layer_of(tmp_path)
    weight[0, 0] = 0.0
    latent = _binarize.latent(weight, layer, method, None).eval()
    coded = latent.coded()
    again = (coded.codes.astype(np.float32) - np.float32(coded.shift)) * coded.scale
    assert np.array_equal(again, latent().detach().numpy())


def test_scales_are_the_mean_size_of_each_filter(tmp_path):
    """XNOR-Net, eq. 6, the least squares solution."""
    weight, layer = layer_of(tmp_path)
    coded = _binarize.latent(weight, layer, "bwn", None).coded()
    assert np.allclose(coded.scale / 2, np.abs(weight).mean(axis=1, keepdims=True))


def test_ternary_keeps_what_is_above_seven_tenths_of_the_mean_size(tmp_path):
    weight, layer = layer_of(tmp_path)
    coded = _binarize.latent(weight, layer, "ternary", None).coded()
    kept = np.abs(weight) > 0.7 * np.abs(weight).mean(axis=1, keepdims=True)
    assert np.mean((coded.codes != 1) == kept) > 0.999
    wanted = (np.abs(weight) * kept).sum(1) / kept.sum(1)
    assert np.allclose(coded.scale[:, 0], wanted)


def test_real_weights_are_clipped_to_the_scale_of_the_layer(tmp_path):
    weight, layer = layer_of(tmp_path)
    latent = _binarize.latent(weight, layer, "binary_connect", None)
    with torch.no_grad():
        latent.stored.mul_(100)
        latent.settle()
    assert latent.real.abs().max().item() == pytest.approx(np.abs(weight).mean(), rel=1e-5)


def test_random_signs_are_noise_of_training_with_the_weight_as_their_mean(tmp_path):
    weight, layer = layer_of(tmp_path)
    latent = _binarize.latent(weight, layer, "binary_connect", torch.Generator().manual_seed(0))
    drawn = torch.stack([latent.train()() for _ in range(400)]).detach()
    assert set(torch.unique(drawn.abs()).tolist()) == {latent.unit}
    assert torch.allclose(drawn.mean(0), latent.real, atol=5 * latent.unit / 20)
    assert torch.equal(latent.eval()(), latent.eval()())


def test_the_gradient_goes_to_the_real_weights(tmp_path):
    weight, layer = layer_of(tmp_path)
    for method in ("bwn", "binary_connect", "ternary"):
        latent = _binarize.latent(weight, layer, method, None)
        latent().sum().backward()
        assert (latent.stored.grad != 0).float().mean() > 0.9, method


def test_the_parents_share_is_told(tmp_path):
    _, _, ctx, _ = binarized(tmp_path, distill=0.7)
    assert any(
        note.startswith("loss, 70% of it the uploaded model's") for note in ctx.coverage.notes
    )


def test_random_signs_are_never_sold_as_the_papers(tmp_path):
    _, _, ctx, _ = binarized(tmp_path, method="binary_connect", stochastic=True)
    assert any("with its real weights, which are no bits" in note for note in ctx.coverage.notes)
    with pytest.raises(ValidationError, match="stochastic is for method 'binary_connect'"):
        QuantizeBinary(method="bwn", stochastic=True)


def test_the_report_says_storage_only(tmp_path):
    _, _, ctx, _ = binarized(tmp_path)
    assert any(note.startswith("storage only") for note in ctx.coverage.notes)


def test_places_of_signs_are_shared_by_layers_that_read_the_same(tmp_path):
    """Attention: queries, keys and values read one normalization."""
    _, after, _, _ = binarized(tmp_path, "vision_transformer", method="bnn")
    readers = [len(node.outputs[0].uses()) for node in after.nodes if node.op_type == "Where"]
    assert readers.count(3) == 2


@pytest.mark.parametrize(("net", "kinds"), [("plain_cnn", {"SignConv"}), ("mlp", {"SignMatMul"})])
@pytest.mark.parametrize("method", ["bnn", "xnor"])
def test_a_second_file_runs_signs_through_the_kernels(tmp_path, net, kinds, method):
    _, after, ctx, model = binarized(tmp_path, net, method=method)
    (path,) = ctx.coverage.files
    ours = {n.op_type for n in onnx.load(path).graph.node if n.domain == _kernel.DOMAIN}
    assert kinds <= ours
    plain = tmp_path / "plain.onnx"
    formats.save(after, plain)
    feeds = jobs.nets.feeds(model, 9)
    opened = [session.open(file, threads=1, kernels=True) for file in (plain, path)]
    assert opened[0].outputs == opened[1].outputs
    wanted, got = (one.run(feeds)[0] for one in opened)
    assert np.allclose(got, wanted, rtol=1e-5, atol=1e-5)
    assert len(np.unique(got.round(3))) > 9
    assert path.stat().st_size < plain.stat().st_size
    assert any(f"{_kernel.FILE} runs products of signs" in n for n in ctx.coverage.notes)
    timed = ctx.coverage.latency_packed
    assert timed is not None
    assert timed.file == _kernel.FILE
    assert timed.ratio == pytest.approx(timed.p10_ms / timed.plain_p10_ms)
    assert timed.max_abs_difference <= 1e-4


def test_groups_stay_in_float_and_the_report_says_so(tmp_path):
    _, _, ctx, _ = binarized(tmp_path, "depthwise_cnn", method="bnn")
    told = [n for n in ctx.coverage.notes if "does not run through the kernels" in n]
    assert any(n.endswith("the kernels have no groups") for n in told)


def test_without_the_kernels_it_is_storage_only(tmp_path, monkeypatch):
    monkeypatch.setattr(xnor, "LIBRARY", tmp_path / "missing.so")
    _, _, ctx, _ = binarized(tmp_path, method="bnn")
    assert ctx.coverage.files == []
    assert ctx.coverage.latency_packed is None
    assert any(n.startswith("storage only: the kernels for signs") for n in ctx.coverage.notes)


@pytest.mark.parametrize("net", ["plain_cnn", "mlp"])
def test_input_scales_are_the_mean_size_of_what_signs_were_taken_of(tmp_path, net):
    """XNOR-Net, section 3.2, against torch: K of each window, padded with 1 as the signs are."""
    before, after, ctx, model = binarized(tmp_path, net, method="xnor", input_scales=True)
    mul = next(n for n in after.nodes if (n.name or "").endswith("_input_scale"))
    layer, size = mul.inputs[0].producer(), mul.inputs[1]
    pad = layer.inputs[0].producer()
    is_padded = pad.op_type == "Pad"
    where = pad.inputs[0].producer() if is_padded else pad
    source = where.inputs[0].producer().inputs[0]
    feeds = jobs.nets.feeds(model, 3)
    found = execute.observe(after, feeds, [source.name, size.name])
    wanted = torch.from_numpy(found[source.name]).abs().mean(dim=1, keepdim=True)
    if is_padded:
        wanted = torch.nn.functional.pad(wanted, (1, 1, 1, 1), value=1.0)
    if layer.op_type == "Conv":
        wanted = torch.nn.functional.avg_pool2d(wanted, 3, 1)
    assert np.allclose(found[size.name], wanted.numpy(), atol=1e-6)
    assert [v.name for v in after.outputs] == [v.name for v in before.outputs]
    assert ctx.coverage.latency_packed is not None


def test_a_transposed_convolution_has_no_scales_of_inputs_and_runs(tmp_path):
    model, graph = jobs.load("upsampling_cnn", tmp_path)
    ranks = {value: 4 for node in graph.nodes for value in [node.inputs[0].name]}
    layers = match.layers(graph)
    trained = _signs.trained_values(graph)
    signs = _signs.place(graph, layers, ranks, trained, scaled=True)
    [(name, reason)] = signs.unscaled.items()
    assert name.startswith("ConvTranspose")
    assert "no window of inputs" in reason
    feeds = jobs.nets.feeds(model, 3)
    [output] = execute.observe(graph, feeds, [graph.outputs[0].name]).values()
    assert output.shape == (3, 1, 8, 8)


def test_input_scales_are_refused_without_signs_of_inputs():
    with pytest.raises(ValidationError, match="input_scales is for method 'xnor'"):
        QuantizeBinary(method="bnn", input_scales=True)
