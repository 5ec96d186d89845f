"""Every step on every tiny net: what any step must keep, whatever it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from modelpress import packed
from modelpress.spec.prune import Controls
from modelpress.spec.recipe import STEPS
from modelpress.spec.step import FineTune, Step
from tests.engine import jobs, nets
from workers.engine import formats, passes, probing
from workers.engine.context import Context
from workers.engine.graph import Graph, execute, verify

VARIANTS: dict[str, Step] = {
    "analyze.sensitivity": STEPS["analyze.sensitivity"](
        methods=("bits", "int8", "magnitude", "low_rank"),
        amounts={"bits": (2, 8), "magnitude": (0.5,), "low_rank": (0.5,)},
        samples=24,
    ),
    "code.huffman": STEPS["code.huffman"](),
    "code.entropy": STEPS["code.entropy"](),
    "distill.logits": STEPS["distill.logits"](
        student={"weights": "fresh"}, training={"epochs": 2, "batch_size": 24}
    ),
    "distill.features": STEPS["distill.features"](
        student={"width": 0.5}, training={"epochs": 1, "batch_size": 24}
    ),
    "prune.magnitude": STEPS["prune.magnitude"](sparsity=0.5),
    "prune.magnitude/layer": STEPS["prune.magnitude"](sparsity=0.5, scope="layer"),
    "prune.magnitude/fine-tuned": STEPS["prune.magnitude"](
        sparsity=0.6, rounds=2, fine_tune=FineTune(epochs=1, batch_size=16)
    ),
    "prune.magnitude/wanda": STEPS["prune.magnitude"](
        sparsity=0.5, criterion="wanda", scope="layer", samples=40
    ),
    "prune.magnitude/taylor": STEPS["prune.magnitude"](sparsity=0.5, criterion="taylor"),
    "prune.magnitude/pattern": STEPS["prune.magnitude"](pattern="1:2"),
    "prune.channels": STEPS["prune.channels"](fraction=0.5),
    "prune.channels/global": STEPS["prune.channels"](fraction=0.4, scope="global", criterion="l1"),
    "prune.channels/controls": STEPS["prune.channels"](
        fraction=0.5,
        fine_tune=FineTune(epochs=1, batch_size=48),
        controls=Controls(scratch_e=True),
    ),
    "prune.channels/taylor": STEPS["prune.channels"](
        macs_ratio=1.5,
        round_to=1,
        rounds=2,
        criterion="taylor",
        fine_tune=FineTune(epochs=1, batch_size=16),
    ),
    "prune.lottery": STEPS["prune.lottery"](
        rounds=2,
        rate=0.4,
        training={"epochs": 1, "batch_size": 24},
        controls={"random_reinit": False},
    ),
    "prune.supermask": STEPS["prune.supermask"](draws=2, training={"epochs": 1}),
    "prune.supermask/random": STEPS["prune.supermask"](
        weights="random", rescale=False, draws=1, training={"epochs": 1}
    ),
    "rewrite.low_rank": STEPS["rewrite.low_rank"](ratio=1.5),
    "rewrite.low_rank/trained": STEPS["rewrite.low_rank"](
        convolution="tucker",
        target={"bytes": 0.8},
        samples=16,
        layerwise={"epochs": 1, "batch_size": 24},
        fine_tune={"epochs": 1, "batch_size": 24},
        recover={"distill": {}},
    ),
    "rewrite.low_rank/aware": STEPS["rewrite.low_rank"](
        convolution="channel", energy=0.5, activation_aware=True, samples=32
    ),
    "rewrite.low_rank/cp": STEPS["rewrite.low_rank"](convolution="cp", ratio=1.3),
    "rewrite.depthwise": STEPS["rewrite.depthwise"](min_inputs=1),
    "rewrite.blocks": STEPS["rewrite.blocks"](),
    "rewrite.blocks/separable": STEPS["rewrite.blocks"](
        block="separable",
        target={"macs": 0.7},
        samples=32,
        layerwise={"epochs": 1, "batch_size": 24},
        fine_tune={"epochs": 1, "batch_size": 24},
        recover={"distill": {}},
    ),
    "rewrite.clean": STEPS["rewrite.clean"](),
    "quantize.bits": STEPS["quantize.bits"](),
    "quantize.bits/run": STEPS["quantize.bits"](
        unpack="run", bits=3, symmetric=False, group_size=16
    ),
    "quantize.bits/gptq": STEPS["quantize.bits"](
        method="gptq", bits=2, group_size=None, act_order=True, samples=32
    ),
    "quantize.bits/mixed": STEPS["quantize.bits"](
        method="awq", mixed={"average_bits": 6.75}, group_size=None, unpack="run", samples=32
    ),
    "quantize.bits/in turn": STEPS["quantize.bits"](
        method="gptq", sequential=True, bias_correction=True, samples=32
    ),
    "quantize.float16": STEPS["quantize.float16"](),
    "quantize.float16/bfloat16": STEPS["quantize.float16"](type="bfloat16"),
    "quantize.float16/computed": STEPS["quantize.float16"](compute="float16"),
    "quantize.int8": STEPS["quantize.int8"](samples=32),
    "quantize.int8/percentile": STEPS["quantize.int8"](samples=32, calibration="percentile"),
    "quantize.int8/per-tensor": STEPS["quantize.int8"](samples=32, per_channel=False),
    "quantize.int8/dynamic": STEPS["quantize.int8"](mode="dynamic"),
    "quantize.int8/refined": STEPS["quantize.int8"](
        samples=32, calibration="mse", equalize=True, smooth=0.5, bias_correction=True
    ),
    "quantize.int8/tensorrt": STEPS["quantize.int8"](
        samples=32, target="tensorrt", calibration="entropy"
    ),
    "quantize.int8/mobile": STEPS["quantize.int8"](samples=32, target="mobile"),
    "quantize.qat": STEPS["quantize.qat"](samples=32, training={"epochs": 1, "batch_size": 24}),
    "quantize.binary": STEPS["quantize.binary"](
        float_ends=False, training={"epochs": 1, "batch_size": 16}
    ),
    "quantize.binary/bnn": STEPS["quantize.binary"](method="bnn", training={"epochs": 1}),
    "quantize.binary/ternary": STEPS["quantize.binary"](
        method="ternary", distill=0.5, training={"epochs": 1}
    ),
    "quantize.cluster": STEPS["quantize.cluster"](bits=4, conv_bits=3),
    "quantize.cluster/global": STEPS["quantize.cluster"](
        bits=5, conv_bits=2, scope="global", initialization="density"
    ),
    "quantize.cluster/fine-tuned": STEPS["quantize.cluster"](
        bits=3, conv_bits=2, fine_tune={"epochs": 1, "batch_size": 16}
    ),
}

HALF = (VARIANTS["quantize.float16/computed"],)
"""Those that compute in 16 bits, which every engine rounds at other places."""

ONLY = {
    "rewrite.blocks": ("plain_cnn", "residual_cnn", "concat_cnn"),
    "rewrite.blocks/separable": ("residual_cnn",),
    "rewrite.depthwise": ("plain_cnn", "residual_cnn", "concat_cnn", "upsampling_cnn"),
    "rewrite.low_rank/trained": ("plain_cnn", "matmul_mlp"),
    "rewrite.low_rank/aware": ("plain_cnn", "mlp", "text_transformer"),
    "rewrite.low_rank/cp": ("plain_cnn",),
}
"""Nets of a variant that has nothing to do on others, or does there what another variant did."""
CASES = [
    (variant, net)
    for variant, step in VARIANTS.items()
    for net in ONLY.get(variant, nets.CLASSIFIERS if step.needs_labels else nets.NETS)
]
DATA_TYPES = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
TOLERANCE = 1e-4
"""Of the largest output."""
MANY, RARE = 100, 0.1
"""Integer kernels may round a value at the border of two codes to the other side, and all outputs of its sample then differ by about a code.
Which samples these are depends on the machine: their share is taken of MANY."""


def test_every_step_has_a_variant_here():
    assert {name.split("/")[0] for name in VARIANTS} == set(STEPS)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request, tmp_path):
    variant, net = request.param
    step = VARIANTS[variant]
    model, graph = jobs.load(net, tmp_path)
    train = jobs.dataset_of(model) if step.needs_data else None
    return step, model, graph, jobs.context_of(graph.clone(), tmp_path, train)


def exported(graph: Graph, path: Path) -> bytes:
    formats.save(graph, path)
    return path.read_bytes()


def signature(model: onnx.ModelProto) -> list[tuple[str, int, list[int | str]]]:
    return [
        (
            v.name,
            v.type.tensor_type.elem_type,
            [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim],
        )
        for v in (*model.graph.input, *model.graph.output)
    ]


def test_conformance(case, tmp_path):
    step, model, graph, ctx = case
    source = graph.clone()
    result = passes.apply(graph, step, ctx)
    verify.verify(result)
    data = exported(result, tmp_path / "result.onnx")
    check_signature(model, data)
    check_agrees_with_onnx_runtime(result, data, model, in_half=step in HALF)
    check_coverage(ctx, step)
    check_effect(step, source, data, ctx)
    check_repeatable(step, source, ctx, data, tmp_path)


def check_signature(model: onnx.ModelProto, data: bytes) -> None:
    assert signature(onnx.load_from_string(data)) == signature(model)


def check_agrees_with_onnx_runtime(
    graph: Graph, data: bytes, model: onnx.ModelProto, *, in_half: bool
) -> None:
    session, tolerance = onnxruntime.InferenceSession(data), 5e-3 if in_half else TOLERANCE
    if b"QuantizeLinear" not in data:
        assert max(gaps(graph, session, model, batch).max() for batch in (5, 1)) <= tolerance
        return
    many = gaps(graph, session, model, MANY)
    assert (many > tolerance).mean() <= RARE
    assert max(many.max(), gaps(graph, session, model, 1).max()) <= probing.CODE_TOLERANCE


def gaps(
    graph: Graph, session: onnxruntime.InferenceSession, model: onnx.ModelProto, batch: int
) -> np.ndarray:
    """How far outputs are apart, as shares of the largest, or of 1."""
    feeds = nets.feeds(model, batch, seed=3)
    ours = execute.run(graph, feeds)["logits"]
    theirs = session.run(["logits"], feeds)[0]
    assert theirs.shape == ours.shape
    return np.abs(ours - theirs) / max(1.0, np.abs(ours).max())


def check_coverage(ctx: Context, step: Step) -> None:
    assert bool(ctx.coverage.touched) is not step.analyzes
    assert all(skipped.reason for skipped in ctx.coverage.skipped)
    names = [touched.layer for touched in ctx.coverage.touched]
    assert len(names) == len(set(names))


def check_effect(step: Step, source: Graph, data: bytes, ctx: Context) -> None:
    """What the step promises is there, measured on the file."""
    after = onnx.load_from_string(data)
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in after.graph.initializer}
    layers = [weights[name] for name in weights if name.startswith("weight")]
    if step.analyzes:
        assert data == exported(source, ctx.work / "source.onnx")
        assert ctx.coverage.sensitivity.rows
    elif step.kind == "prune.magnitude" and step.pattern is not None:
        kept, of = step.kept_of
        assert {float((w != 0).mean()) for w in layers} <= {kept / of, 1.0}
    elif step.kind == "prune.magnitude":
        zeros = sum(int((w == 0).sum()) for w in layers)
        assert zeros == pytest.approx(step.sparsity * sum(w.size for w in layers), abs=len(layers))
    elif step.kind.startswith("distill."):
        names = [touched.layer for touched in ctx.coverage.touched]
        assert all(not np.array_equal(weights[name], source.weight(name)) for name in names)
    elif step.kind == "prune.lottery":
        reached = [float((w == 0).mean()) for w in layers]
        goals = (
            1 - 0.6**2,
            1 - 0.8**2,
            0,
        )  # of most layers, of the output layer, of what is no layer
        assert all(any(abs(r - goal) < 0.02 for goal in goals) for r in reached)
        assert max(reached) > 0.6
    elif step.kind == "prune.supermask":
        assert all(0.1 < (w != 0).mean() < 0.9 for w in layers)
    elif step.kind.startswith("code."):
        check_packed(ctx, data)
    elif step.kind == "prune.channels":
        parameters = sum(array.size for array in source.parameters().values())
        assert sum(w.size for w in weights.values()) < 0.9 * parameters
    elif step.kind == "rewrite.clean":
        assert len(after.graph.node) < len(source.nodes)
    elif step.kind.startswith("rewrite."):
        parameters = sum(array.size for array in source.parameters().values())
        assert sum(array.size for array in weights.values()) < parameters
    elif step.kind in ("quantize.cluster", "quantize.binary"):
        floats = sum(array.nbytes for array in source.parameters().values())
        stored = {name: w for name, w in weights.items() if name.endswith("_codes")}
        assert stored
        assert sum(w.nbytes for w in weights.values()) < 0.6 * floats
    elif step.kind == "quantize.float16":
        halves = [w for w in after.graph.initializer if w.data_type == DATA_TYPES[step.type]]
        assert sum(len(w.raw_data) for w in halves) == sum(
            array.nbytes // 2 for array in source.parameters().values()
        )
    elif step.kind == "quantize.bits":
        names = [name for name in source.parameters() if name.startswith("weight")]
        assert not set(names) & set(weights)
        stored = (len(w.raw_data) for w in after.graph.initializer if w.name.startswith("weight"))
        assert sum(stored) < 0.5 * sum(source.weight(name).nbytes for name in names)
    else:
        floats = sum(array.nbytes for array in source.parameters().values())
        stored = sum(w.nbytes for name, w in weights.items() if w.dtype == np.int8)
        assert stored
        assert sum(w.nbytes for w in weights.values()) < 0.75 * floats


def check_packed(ctx: Context, data: bytes) -> None:
    """The packed file is smaller, all of it is accounted for, and it gives the exported file back."""
    (file,) = ctx.coverage.files
    size_bytes = file.stat().st_size
    assert sum(ctx.coverage.coded.model_dump().values()) == size_bytes < len(data)
    packed.unpack(file, file.with_suffix(".again"))
    assert file.with_suffix(".again").read_bytes() == data


def check_repeatable(step: Step, source: Graph, ctx: Context, data: bytes, tmp_path: Path) -> None:
    again = jobs.context_of(source, tmp_path, ctx.train)
    result = passes.apply(source.clone(), step, again)
    assert exported(result, tmp_path / "again.onnx") == data
    assert again.coverage == ctx.coverage
