"""quantize.binary: weights of one bit or three values, trained as such and stored packed.

    w [out, in] float -> MatMul
    bytes [n, 1] uint8 -> Div -> Mod -> Reshape -> Cast -> Sub(0.5) -> Mul(2 * scale) -> MatMul

Methods and their papers: _binarize.py; signs of activations: _signs.py. The network is trained with real weights behind the binary ones:
each run takes the binary weights, and each gradient goes to the real ones as if they had been run (straight-through). The file has
eight weights in a byte, or five of three values; where activations are signs too, a second one runs through kernels (_kernel.py).
Differs in: cross-entropy instead of the papers' squared hinge.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from modelpress.spec.distill import Distill, Recover
from modelpress.spec.quantize import QuantizeBinary
from workers.engine import forward, teaching
from workers.engine.context import Context
from workers.engine.errors import NothingChanged, Unsupported
from workers.engine.graph import Graph, codes, edit, execute, match, shapes
from workers.engine.graph.match import Layer
from workers.engine.kernels import xnor
from workers.engine.passes import _weights
from workers.engine.passes.quantize import _binarize, _chosen, _kernel, _signs
from workers.engine.passes.quantize._binarize import Coded
from workers.engine.passes.quantize._signs import Signs

_STORAGE_ONLY = (
    "storage only: ONNX Runtime unpacks all weights once, when it opens the file, and then multiplies floats as before, so that a run is "
    "no faster; it has no kernel for weights of one bit"
)
_NO_KERNEL = (
    "storage only: the kernels for signs were not built when the package was installed, as there was no C compiler; install one and run "
    "python workers/engine/kernels/build.py"
)
_RANDOM_SIGNS = (
    "trained with random signs as noise; the result has the likeliest ones. The paper measures such a network with its real weights, "
    "which are no bits"
)


def apply(graph: Graph, step: QuantizeBinary, ctx: Context) -> Graph:
    """Trains binary weights and stores them packed.

    Raises:
        NothingChanged: there is no layer to binarize.
        BadModel: a weight is not finite.
        Unsupported: activations are to be signs, but the model runs one fixed batch only.
        BadData, Diverged: as `train.fit`.
    """
    _weights.turn(graph)
    layers = _binarized(graph, step, ctx)
    signs = _take_signs(graph, set(layers), step, ctx)
    module = Binary(graph, layers, step, ctx.generator("signs"), signs)
    _train(module, graph, step, ctx)
    execute.write_back(module.network, graph)
    coded = module.coded()
    for name, found in coded.items():
        ctx.touched(name, _change(graph, name, found, _input(graph, name, signs, step)))
    bare = graph.clone() if signs.places else None
    _write(graph, coded, signs)
    if bare is not None:
        _run_by_kernel(bare, graph, coded, signs, ctx)
    _note(step, signs, ctx)
    return graph


def survey(graph: Graph, ctx: Context) -> None:
    """Lists what could be binarized. Raises as `apply`."""
    _weights.turn(graph)
    for name in _chosen.layers(graph, QuantizeBinary(), ctx):
        ctx.touched(name, "its weights can be trained as signs with scales")


class Binary(nn.Module):
    """A network that runs on binary weights and trains the real ones behind them."""

    def __init__(
        self,
        graph: Graph,
        layers: Mapping[str, Layer],
        step: QuantizeBinary,
        noise: torch.Generator,
        signs: Signs,
    ) -> None:
        super().__init__()
        self.network = execute.as_module(graph)
        drawn = noise if step.stochastic else None
        self._latents = {
            name: _binarize.latent(graph.weight(name), layer, step.method, drawn)
            for name, layer in layers.items()
        }
        self._registered = nn.ModuleList(self._latents.values())
        self._signs = dict.fromkeys(signs.places, _binarize.sign)
        for name in layers:
            self.network.weights[name].requires_grad_(False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs the network."""
        mine = self.network.weights
        weights = {name: latent().to(mine[name].dtype) for name, latent in self._latents.items()}
        return self.network.run_with(weights, inputs, self._signs)

    @torch.no_grad()
    def settle(self) -> None:
        """Brings real weights back into their bounds."""
        for latent in self._latents.values():
            latent.settle()

    def coded(self) -> dict[str, Coded]:
        """The binary weights, by name."""
        return {name: latent.coded() for name, latent in self._latents.items()}


def _binarized(graph: Graph, step: QuantizeBinary, ctx: Context) -> dict[str, Layer]:
    """The layers whose weights become binary; the others are reported.

    Raises:
        NothingChanged: there is none.
    """
    found = _chosen.layers(graph, step, ctx)
    for name in _ends(graph) if step.leaves_ends else ():
        if found.pop(name, None) is not None:
            ctx.skipped(name, f"first or last layer: stays in float with {step.method}")
    if not found:
        raise NothingChanged(
            "quantize.binary leaves the first and the last layer in float, and there are no others",
            hint="set float_ends to false",
        )
    return found


def _ends(graph: Graph) -> list[str]:
    """Weights of layers before which there is no other, or after which there is none."""
    layers = match.layers(graph)
    after, before = _signs.trained_values(graph), _values_before(graph, layers)
    first = [layer.weight for layer in layers if layer.node.inputs[0] not in after]
    last = [layer.weight for layer in layers if not before & set(layer.node.outputs)]
    return list(dict.fromkeys([*first, *last]))


def _values_before(graph: Graph, layers: list[Layer]) -> set[ir.Value | None]:
    """Values that a layer depends on."""
    nodes = {layer.node for layer in layers}
    found: set[ir.Value | None] = set()
    for node in reversed(graph.nodes):
        if node in nodes or found & set(node.outputs):
            found.update(node.inputs)
    return found


def _take_signs(graph: Graph, names: set[str], step: QuantizeBinary, ctx: Context) -> Signs:
    """Puts places for signs before binarized layers, where the method wants them."""
    if not step.signs_activations:
        return Signs()
    assert ctx.train is not None, "the recipe was checked: training has data"
    fixed = forward.fixed_batch(ctx.source, ctx.train)
    if fixed is not None:
        raise Unsupported(
            f"{step.method} trains normalization with the statistics of its batches, but the model runs batches of {fixed} and no other",
            hint="export the model with a free batch size, or choose bwn, binary_connect or ternary",
        )
    given = {name: array.shape for name, array in ctx.train.batch([0]).items()}
    found = shapes.infer(graph, shapes.example_shapes(graph, given=given))
    ranks = {name: len(shape) for name, shape in found.items()}
    layers = [layer for layer in match.layers(graph) if layer.weight in names]
    trained = _signs.trained_values(graph)
    return _signs.place(graph, layers, ranks, trained, scaled=step.input_scales)


def _train(module: Binary, graph: Graph, step: QuantizeBinary, ctx: Context) -> None:
    by = step.recover
    if step.distill > 0:
        by = Recover(distill=Distill(alpha=step.distill, temperature=step.temperature))
    log = teaching.train_by(
        module, graph, step.training, ctx, by, after_step=module.settle, label=step.method
    )
    beside = f", {step.distill:.0%} of it the uploaded model's scores" if step.distill > 0 else ""
    if step.recover is not None:
        beside = f" by {teaching.described(step.recover)}"
    ctx.note(f"loss{beside}: {teaching.course(log)}")


def _write(graph: Graph, coded: Mapping[str, Coded], signs: Signs) -> None:
    """Puts operators and packed weights in the place of what was trained."""
    _signs.finish(graph, signs)
    for name, found in coded.items():
        if name in graph.initializers:
            _store(graph, name, found)
    edit.remove_dead(graph)


def _run_by_kernel(
    bare: Graph, graph: Graph, coded: Mapping[str, Coded], signs: Signs, ctx: Context
) -> None:
    """Leaves a second file that runs through the kernels, where they were built; `bare` has places for signs and becomes it."""
    if not xnor.is_available():
        ctx.note(_NO_KERNEL)
        return
    left = _kernel.rewrite(bare, coded, signs)
    _write(bare, coded, _signs.places_in(bare, signs))
    for name, reason in left.items():
        ctx.note(f"{name} does not run through the kernels in {_kernel.FILE}: {reason}")
    ctx.note(_kernel.keep(bare, graph, ctx))


def _store(graph: Graph, name: str, coded: Coded) -> None:
    """Puts packed codes and a scale in the place of a weight."""
    weight = graph.initializers[name]
    dtype = graph.weight(name).dtype
    first = graph.nodes[0]
    assert weight.dtype is not None
    numbers = codes.numbers(graph, first, name, coded.codes, coded.base, weight.dtype)
    shift = graph.add_weight(f"{name}_shift", np.array(coded.shift, dtype))
    scale = graph.add_weight(f"{name}_scale", coded.scale.astype(dtype))
    around = edit.insert_before(graph, first, "Sub", [numbers, shift])
    scaled = edit.insert_before(graph, first, "Mul", [around.outputs[0], scale])
    edit.replace_uses(weight, scaled.outputs[0])


def _input(graph: Graph, name: str, signs: Signs, step: QuantizeBinary) -> str:
    """What became of the inputs of a layer."""
    if not step.signs_activations:
        return ""
    users = [user.name or "" for user, _ in graph.initializers[name].uses()]
    reason = next((signs.float_inputs[user] for user in users if user in signs.float_inputs), None)
    return ", inputs of 1 bit" if reason is None else f", inputs in float: {reason}"


def _change(graph: Graph, name: str, coded: Coded, inputs: str) -> str:
    before, scales = graph.weight(name), coded.scale.size
    bits = "1 bit" if coded.base == 2 else f"{8 / codes.digits_in_byte(coded.base):g} bits"
    zeros = ""
    if coded.base == 3:
        zeros = f", {np.count_nonzero(coded.codes == 1) / before.size:.1%} of them zero"
    stored = codes.file_bytes(before.size, coded.base)
    return (
        f"{before.size:,} weights of {bits}{zeros}, {scales} {'scale' if scales == 1 else 'scales'}{inputs}; "
        f"{before.nbytes:,} -> {stored:,} bytes and {scales * before.itemsize:,} of scales"
    )


def _note(step: QuantizeBinary, signs: Signs, ctx: Context) -> None:
    ctx.note(f"model.onnx is {_STORAGE_ONLY}" if ctx.coverage.files else _STORAGE_ONLY)
    if step.stochastic:
        ctx.note(_RANDOM_SIGNS)
    if signs.normalizations:
        ctx.note(
            f"{signs.normalizations} BatchNormalization nodes were added before signs that had none"
        )
    for name, reason in signs.unscaled.items():
        ctx.note(f"{name} has no scales of inputs: {reason}")
    if signs.places:
        ctx.note("rectifiers before signs went, and convolutions of signs are padded with 1, not 0")
