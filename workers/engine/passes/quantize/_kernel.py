"""The trained network once more, as a file whose products of signs run through the kernels in C (kernels/operators.c).

    y -> sign -> Pad(1) -> Conv(a * signs) -> z        becomes
    y -> modelpress.SignConv(words of signs, a) -> z

Sums of signs are the same whole numbers in both. The float file adds a and -a instead and rounds each sum, so that outputs may differ by
a rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from modelpress.spec.report import KernelLatency
from workers.engine import formats
from workers.engine.context import Context
from workers.engine.errors import ExportMismatch
from workers.engine.graph import Graph, edit, match
from workers.engine.graph.match import Layer
from workers.engine.kernels import xnor
from workers.engine.measure import latency, session
from workers.engine.passes.quantize._binarize import Coded
from workers.engine.passes.quantize._signs import Signs

FILE = "model.xnor.onnx"
"""Beside model.onnx: the same network for ONNX Runtime with the kernels registered."""
DOMAIN = "modelpress"
_BUDGET_S = 0.25


def rewrite(graph: Graph, coded: Mapping[str, Coded], signs: Signs) -> dict[str, str]:
    """Lets layers that read signs run through the kernels, as long as signs have their places.

    Args:
        graph: Changes; weights of these layers go.
        coded: Binary weights by name.
        signs: Places by the name of their result.

    Returns:
        Why other layers of `coded` do not, by the name of the node.
    """
    left: dict[str, str] = {}
    for layer in match.layers(graph):
        if layer.weight not in coded:
            continue
        place, pads = _place(graph, layer, signs)
        reason = _unfit(graph, layer) if place is not None else "its inputs are no signs"
        if reason or place is None:
            left[layer.name] = reason
        else:
            _replace(graph, layer, coded[layer.weight], place, pads)
    graph.model.graph.opset_imports[DOMAIN] = 1
    edit.remove_dead(graph)
    return left


def keep(graph: Graph, reference: Graph, ctx: Context) -> str:
    """Writes the rewritten network beside the model, checks it against the float file and times both.

    Returns:
        What the report says of it.

    Raises:
        ExportMismatch: ONNX Runtime refuses it.
    """
    path, plain = ctx.work / FILE, ctx.work / "plain.onnx"
    formats.save(graph, path)
    formats.save(reference, plain)
    ctx.coverage.files.append(path)
    found = _compare(path, plain, ctx)
    plain.unlink()
    return found


def _compare(path: Path, plain: Path, ctx: Context) -> str:
    held = ctx.eval if ctx.eval is not None else ctx.train
    assert held is not None, "the recipe was checked: training has data"
    sessions = [
        session.open(
            file, threads=ctx.threads, raising=ExportMismatch, spin=False, kernels=file == path
        )
        for file in (plain, path)
    ]
    fixed = sessions[0].fixed_batch
    many = latency.sample_feeds(held, fixed or min(held.samples, 256))
    answers, ours = (opened.run(many) for opened in sessions)
    one = latency.sample_feeds(held, fixed or 1)
    runs = [_runner(opened, one) for opened in sessions]
    plainly, packed = latency.alternate((runs[0], runs[1]), 2 * _BUDGET_S)
    before, after = (float(np.percentile(times, 10)) for times in (plainly, packed))
    ctx.coverage.latency_packed = KernelLatency(
        file=FILE,
        p10_ms=after,
        plain_p10_ms=before,
        ratio=after / before,
        runs=len(packed),
        batch=fixed or 1,
        threads=ctx.threads,
        samples=len(next(iter(many.values()))),
        max_abs_difference=_furthest(answers, ours),
    )
    return (
        f"{FILE} runs products of signs by XNOR and popcount; it needs the kernels: "
        "SessionOptions.register_custom_ops_library(libxnor.so)"
    )


def _furthest(answers: Sequence[np.ndarray], ours: Sequence[np.ndarray]) -> float:
    """Of all outputs that are floats: class numbers jump where scores tie."""
    pairs = [pair for pair in zip(answers, ours, strict=True) if pair[0].dtype.kind == "f"]
    return max((float(np.abs(a - b).max(initial=0)) for a, b in pairs), default=0.0)


def _runner(opened: session.Session, feeds: latency.Feeds) -> Callable[[], None]:
    return lambda: opened.run_untimed(feeds)


def _place(graph: Graph, layer: Layer, signs: Signs) -> tuple[ir.Node | None, tuple[int, ...]]:
    """The place of the sign that a layer reads, and how many ones are put around it."""
    value = layer.node.inputs[0]
    node = None if value is None else value.producer()
    pads: tuple[int, ...] = ()
    if node is not None and node.op_type == "Pad" and node.inputs[0] is not None:
        whole = graph.weight((node.inputs[1].name if node.inputs[1] else "") or "")
        half = len(whole) // 2
        pads = (*map(int, whole[2:half]), *map(int, whole[half + 2 :]))
        node = node.inputs[0].producer()
    is_place = node is not None and (node.outputs[0].name or "") in signs.places
    return (node if is_place else None), pads


def _unfit(graph: Graph, layer: Layer) -> str:
    """Why the kernels can't run a layer; '' where they can."""
    attributes = layer.node.attributes
    if graph.weight(layer.weight).dtype != np.float32:
        return "the kernels give float32"
    if layer.kind != "MatMul" and len(layer.node.inputs) > 2 and layer.bias is None:
        return "its bias is computed"
    if layer.kind == "Gemm":
        factors = [attributes[name].as_float() for name in ("alpha", "beta") if name in attributes]
        return "" if all(factor == 1 for factor in factors) else "its product is scaled"
    if layer.kind != "Conv":
        return "" if layer.kind == "MatMul" else f"there is no kernel for {layer.kind}"
    if graph.weight(layer.weight).ndim != 4:
        return "the kernels convolve images"
    if "group" in attributes and attributes["group"].as_int() != 1:
        return "the kernels have no groups"
    dilations = attributes["dilations"].as_ints() if "dilations" in attributes else (1,)
    padded = "pads" in attributes and any(attributes["pads"].as_ints())
    automatic = "auto_pad" in attributes and attributes["auto_pad"].as_string() != "NOTSET"
    if any(d != 1 for d in dilations) or padded or automatic:
        return "the kernels have neither dilations nor automatic padding"
    return ""


def _replace(
    graph: Graph, layer: Layer, coded: Coded, place: ir.Node, pads: tuple[int, ...]
) -> None:
    node, convolves = layer.node, layer.kind == "Conv"
    filters = np.moveaxis(2.0 * coded.codes - 1.0, layer.out_axis, 0)
    filters = filters.transpose(0, 2, 3, 1) if convolves else filters
    count, channels = len(filters), filters.shape[-1]
    scale = np.broadcast_to((coded.scale / 2).reshape(-1), (count,)).astype(np.float32)
    bias = np.zeros(count, np.float32)
    if layer.kind != "MatMul" and layer.bias is not None:
        bias = np.broadcast_to(graph.weight(layer.bias).reshape(-1), (count,))
    name = layer.weight
    constants = [
        graph.add_weight(f"{name}_signs", xnor.pack(filters).words),
        graph.add_weight(f"{name}_sizes", scale),
        graph.add_weight(f"{name}_bias", bias),
    ]
    ran = edit.insert_before(
        graph,
        node,
        "SignConv" if convolves else "SignMatMul",
        [place.inputs[0], *constants],
        attributes={"channels": channels, **(_geometry(node, pads) if convolves else {})},
        name=f"{layer.name}_xnor",
        domain=DOMAIN,
    )
    edit.take_place(graph, node.outputs[0], ran.outputs[0])


def _geometry(node: ir.Node, pads: tuple[int, ...]) -> dict[str, int]:
    strides = node.attributes["strides"].as_ints() if "strides" in node.attributes else (1, 1)
    sides = ("pad_top", "pad_left", "pad_bottom", "pad_right")
    return {
        "stride_height": strides[0],
        "stride_width": strides[1],
        **dict(zip(sides, pads or (0, 0, 0, 0), strict=True)),
    }
