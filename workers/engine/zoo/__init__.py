"""Student networks: architectures of the papers at any width, depth, input size and number of classes.

A builder takes the image [N, channels, height, width] and answers scores [N, classes]. The papers' networks halve their maps four or five times,
for images of 224 pixels and more; where that would leave a map below 4 x 4, the first halvings are left out, as is usual for small images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from modelpress.spec.architecture import Architecture
from workers.engine.errors import Unsupported
from workers.engine.graph import Graph
from workers.engine.graph.build import Builder, empty
from workers.engine.zoo import (
    ghostnet,
    mobilenet_v1,
    mobilenet_v2,
    shufflenet_v1,
    shufflenet_v2,
    squeezenet,
    xception,
)
from workers.engine.zoo._plan import Plan

BUILDERS: dict[str, Callable[[Builder, ir.Value, Plan], ir.Value]] = {
    "squeezenet_1_0": squeezenet.version_1_0,
    "squeezenet_1_1": squeezenet.version_1_1,
    "mobilenet_v1": mobilenet_v1.network,
    "mobilenet_v2": mobilenet_v2.network,
    "shufflenet_v1": shufflenet_v1.network,
    "shufflenet_v2": shufflenet_v2.network,
    "xception": xception.network,
    "ghostnet": ghostnet.network,
}


def build(
    student: Architecture,
    input_shape: Sequence[int],
    classes: int,
    rng: np.random.Generator,
    *,
    input_name: str = "image",
    output_name: str = "logits",
) -> Graph:
    """A network with new weights.

    Args:
        student: Which, how wide and how deep.
        input_shape: [channels, height, width] of one image.
        classes: Scores it answers, before a softmax.
        rng: Where its weights are drawn from.
        input_name: Of the input [batch, channels, height, width].
        output_name: Of the output [batch, classes].

    Raises:
        Unsupported: inputs are no images.
    """
    if len(input_shape) != 3 or math.prod(input_shape) < 1:
        raise Unsupported(
            f"{student.name} takes images [channels, height, width], but one input is {list(input_shape)}",
            hint="take a narrower or shallower copy of the model as the student",
        )
    graph = empty({input_name: ("batch", *input_shape)})
    builder = Builder(graph, rng)
    plan = Plan(student.width, student.depth, classes, min(input_shape[1:]))
    scores = BUILDERS[student.name](builder, graph.inputs[0], plan)
    return builder.answer(scores, output_name, ("batch", classes))
