"""onnx's own single-operator cases, counted: the score that a test prints and docs/operators.md carries.

Run as a program it writes the score into the page: python -m tests.engine.graph.conformance
"""

from __future__ import annotations

import functools
import re
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx.backend.test.loader import load_model_tests

from workers.engine.formats import limits, normal
from workers.engine.graph import Graph, execute, ops
from workers.engine.graph.ops import microsoft

PAGE = Path(__file__).parents[3] / "docs" / "operators.md"
BEGIN, END = "<!-- score -->", "<!-- end of score -->"

BFLOAT16 = 2**-6
"""onnx's own tolerance for bfloat16: two units in the last place."""

PEERS = {"onnx2torch": 336, "onnx2fx": 1347, "onnx2pytorch": 1391}
"""Cases that other importers pass, measured with the same harness."""

REWRITTEN = {
    "Upsample": "Resize",
    "Scatter": "ScatterElements",
    "ai.onnx.ml::ArrayFeatureExtractor": "Gather",
    "ai.onnx.ml::Scaler": "Mul",
}
"""What loading makes of operators outside the table."""

STRINGS = "its tensors hold strings; a network here holds numbers"
OPTIMIZER = "a step of an optimizer, which is no part of a network"
DRAWN = "runs; the case expects the numbers that numpy's generator draws"

OUT = {
    "Equal": "of strings; of numbers all cases pass",
    "StringConcat": STRINGS,
    "StringNormalizer": STRINGS,
    "StringSplit": STRINGS,
    "RegexFullMatch": STRINGS,
    "ai.onnx.ml::LabelEncoder": STRINGS,
    "ai.onnx.ml::TreeEnsemble": "decision trees have no gradient and no layers to make smaller",
    "ImageDecoder": "decodes image files; images come decoded, as a dataset",
    "Bernoulli": DRAWN,
    "Dropout": f"in training mode; {DRAWN}",
    "Attention": "float16: the softmax is computed in float32 and rounded once, the case rounds each step",
    "Resize": "align_corners with scales: as in ONNX Runtime, corners are those of the rounded size",
    "Scan": "the Scan of opset 8, with a batch axis of its own; opset 9 and newer is in",
    "ai.onnx.preview.training::Adagrad": OPTIMIZER,
    "ai.onnx.preview.training::Adam": OPTIMIZER,
    "ai.onnx.preview.training::Momentum": OPTIMIZER,
}
"""Operators with cases that fail, and why."""


@dataclass
class Score:
    """Cases by family of operators, and what fails."""

    cases: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    failed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Names of failed cases, with the error if there was one, by operator."""


@functools.cache
def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return load_model_tests(kind="node")


def unknown(case):
    kinds = {ops.key(n.domain, n.op_type) for n in case.model.graph.node}
    return sorted(kind for kind in kinds if kind not in ops.TABLE and kind not in limits.CONVERTED)


def graph(case):
    model = ir.from_proto(case.model)
    normal.normalise(model)
    return Graph(model)


def array(value):
    return ir.from_proto(value).numpy() if isinstance(value, onnx.TensorProto) else value


def agrees(got, want, case):
    if isinstance(want, list):
        return len(got) == len(want) and all(map(agrees, got, want, [case] * len(want)))
    if want is None or got is None:
        return want is got
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    relative = max(case.rtol, BFLOAT16) if want.dtype.name == "bfloat16" else case.rtol
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    with np.errstate(invalid="ignore"):
        got, want = got.astype(wide), want.astype(wide)
    return np.allclose(got, want, relative, max(case.atol, 1e-6), equal_nan=True)


def passes(case):
    known = graph(case)
    names = [value.name for value in known.inputs]
    for inputs, outputs in case.data_sets:
        got = execute.run(known, dict(zip(names, map(array, inputs), strict=True))).values()
        if not all(map(agrees, got, map(array, outputs), [case] * len(outputs))):
            return False
    return True


def failure(case):
    """Why a case fails; None where it passes."""
    if missing := unknown(case):
        return f"{case.name}: no {', '.join(missing)}"
    try:
        return None if passes(case) else f"{case.name}: other numbers"
    except Exception as error:  # every kind of failure is a wrong answer here
        return f"{case.name}: {type(error).__name__}: {str(error)[:80]}"


@functools.cache
def score():
    found = Score()
    whole = {case.name: case for case in cases()}
    for name, case in whole.items():
        tested = operator(whole.get(re.sub("_expanded.*", "", name), case))
        kind = family(tested)
        found.cases[kind] += 1
        if (why := failure(case)) is None:
            found.passed[kind] += 1
        else:
            found.failed[tested].append(why)
    return found


def operator(case):
    """The operator of a case; of several nodes the last one's."""
    node = case.model.graph.node[-1]
    return ops.key(node.domain, node.op_type)


def is_microsofts(name):
    """Whether ONNX Runtime defines it; onnx has no cases for these, tests/engine/graph/test_microsoft.py has."""
    return name.startswith(microsoft.DOMAIN) or name == "SimplifiedLayerNormalization"


def family(name):
    """The file of an operator; what has none is out."""
    known = ops.TABLE.get(REWRITTEN.get(name, name))
    return "out" if known is None else known.compute.__module__.rpartition(".")[2]


def table(found):
    """The score in Markdown."""
    peers = PEERS.values()
    lines = [
        f"| Family | ModelPress | {' | '.join(PEERS)} | of |",
        f"|---|{'---:|' * (len(PEERS) + 2)}",
        f"| **all** | **{found.passed.total():,}** | {' | '.join(f'{n:,}' for n in peers)} "
        f"| {found.cases.total():,} |",
    ]
    for kind in [*sorted(set(found.cases) - {"out"}), "out"]:
        label = "operators that are out" if kind == "out" else kind.replace("_", " ")
        blank = " | ".join([""] * len(PEERS))
        lines.append(f"| {label} | {found.passed[kind]:,} | {blank} | {found.cases[kind]:,} |")
    lines += ["", "The operators of each family:", ""]
    for kind in sorted(set(map(family, ops.TABLE))):
        names = ", ".join(f"`{name}`" for name in sorted(ops.TABLE) if family(name) == kind)
        lines.append(f"- {kind.replace('_', ' ')}: {names}")
    lines += ["", "| Out | Cases | Reason |", "|---|---:|---|"]
    lines += [
        f"| `{name}` | {len(found.failed[name])} | {OUT.get(name, '?')} |"
        for name in sorted(found.failed)
    ]
    return "\n".join(lines)


def main():
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table(score())}\n{END}{after}")


if __name__ == "__main__":
    main()
