from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional

from workers.engine import losses
from workers.engine.errors import BadData, Unsupported
from workers.engine.graph import Graph, execute

LOGITS = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 5


def ending_in(*nodes: tuple[str, dict], classes: int = 5) -> Graph:
    """A graph that passes its input through these operators."""
    made, last = [], "x"
    for index, (kind, attributes) in enumerate(nodes):
        name = "y" if index == len(nodes) - 1 else f"v{index}"
        made.append(helper.make_node(kind, [last], [name], name=f"n{index}", **attributes))
        last = name
    infos = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", classes]) for n in ("x", "y")
    ]
    graph = helper.make_graph(made, "net", infos[:1], infos[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    return Graph(ir.from_proto(model))


def loss_of(graph: Graph, logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    outputs = execute.as_module(graph)(logits)
    return losses.classification(graph)(losses.Batch((logits,), outputs, labels))


@pytest.mark.parametrize(
    "nodes",
    [
        [("Identity", {})],
        [("Softmax", {"axis": 1})],
        [("LogSoftmax", {"axis": 1})],
        [("Softmax", {"axis": 1}), ("Identity", {})],
        [("Softmax", {"axis": 1}), ("Log", {})],
        [("Softmax", {"axis": 1}), ("Flatten", {"axis": 1}), ("Cast", {"to": TensorProto.FLOAT})],
    ],
)
def test_the_loss_is_the_same_whatever_ends_the_model(nodes) -> None:
    logits = LOGITS.clone().requires_grad_()
    wanted = LOGITS.clone().requires_grad_()
    value = loss_of(ending_in(*nodes), logits, LABELS)
    value.backward()
    functional.cross_entropy(wanted, LABELS).backward()
    torch.testing.assert_close(value, functional.cross_entropy(LOGITS, LABELS))
    torch.testing.assert_close(logits.grad, wanted.grad)


def test_a_probability_of_zero_costs_much_and_is_no_infinity() -> None:
    logits = torch.tensor([[200.0, 0, 0, 0, 0]], requires_grad=True)
    value = loss_of(ending_in(("Softmax", {"axis": 1})), logits, torch.tensor([1]))
    value.backward()
    assert 80 < value.item() < 100
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_independent_probabilities_are_trained_one_by_one() -> None:
    value = loss_of(ending_in(("Sigmoid", {})), LOGITS, LABELS)
    wanted = functional.one_hot(LABELS, 5).float()
    torch.testing.assert_close(
        value, functional.binary_cross_entropy_with_logits(LOGITS, wanted), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("end", ["Identity", "Sigmoid"])
def test_a_single_score_tells_class_1_from_class_0(end: str) -> None:
    labels = LABELS % 2
    value = loss_of(ending_in((end, {}), classes=1), LOGITS[:, :1], labels)
    wanted = functional.binary_cross_entropy_with_logits(LOGITS[:, 0], labels.float())
    torch.testing.assert_close(value, wanted)


def test_the_first_vector_of_floats_scores_the_classes() -> None:
    outputs = (torch.zeros(4), torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, 3, 2), LOGITS)
    assert losses.scores_index(outputs) == 3


def test_a_model_without_class_scores_is_refused() -> None:
    with pytest.raises(Unsupported, match=r"shapes are \[\[4, 1, 8, 8\]\]"):
        losses.scores_index((torch.zeros(4, 1, 8, 8),))


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(BadData, match="label 5 occurs, but the model's output has 5 classes"):
        loss_of(ending_in(("Identity", {})), LOGITS[:1], torch.tensor([5]))


def test_missing_labels_are_refused() -> None:
    with pytest.raises(BadData, match="has none"):
        loss_of(ending_in(("Identity", {})), LOGITS, None)
