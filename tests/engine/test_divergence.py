"""Golden facts of distillation losses, and the papers' formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workers.engine import divergence
from workers.engine.losses import Scores

BOTH = {"target_weight": 1.0, "others_weight": 8.0}


def drawn(samples: int = 16, classes: int = 10, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(0, 3, (2, samples, classes))
    return student, teacher, rng.integers(0, classes, samples)


def tensors(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in arrays)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


def numpy_kd(student: np.ndarray, teacher: np.ndarray, t: float) -> float:
    return float(t**2 * kl(softmax(teacher / t), softmax(student / t)).mean())


def numpy_dkd(student: np.ndarray, teacher: np.ndarray, right: np.ndarray, t: float) -> float:
    """Equations 2 to 7 of arXiv 2203.08679, one sample at a time."""
    total = 0.0
    for s, z, k in zip(student, teacher, right, strict=True):
        p, q = softmax(z / t), softmax(s / t)
        tckd = kl(np.array([p[k], 1 - p[k]]), np.array([q[k], 1 - q[k]]))
        nckd = kl(np.delete(p, k) / (1 - p[k]), np.delete(q, k) / (1 - q[k]))
        total += t**2 * (1.0 * tckd + 8.0 * nckd)
    return total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_equal_scores_have_no_loss_and_no_gradient(temperature):
    scores, _, right = tensors(*drawn())
    for loss in (
        lambda s: divergence.kd(s, scores, temperature),
        lambda s: divergence.dkd(s, scores, right, temperature, **BOTH),
    ):
        student = scores.clone().requires_grad_()
        value = loss(student)
        value.backward()
        assert value.item() == pytest.approx(0, abs=1e-9)
        assert student.grad.abs().max() < 1e-9


def test_the_gradient_keeps_its_size_at_any_high_temperature(record_property):
    student, teacher, _ = tensors(*drawn())
    sizes = []
    for temperature in (10.0, 20.0):
        asked = student.clone().requires_grad_()
        divergence.kd(asked, teacher, temperature).backward()
        sizes.append(asked.grad.norm().item())
    record_property("figure", f"gradient of kd at T=10 over T=20: {sizes[0] / sizes[1]:.3f}")
    assert sizes[0] / sizes[1] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_losses_equal_the_papers_formulas(temperature):
    student, teacher, right = drawn()
    ours = divergence.kd(*tensors(student, teacher), temperature).item()
    assert ours == pytest.approx(numpy_kd(student, teacher, temperature), abs=1e-6)
    ours = divergence.dkd(*tensors(student, teacher, right), temperature, **BOTH).item()
    assert ours == pytest.approx(numpy_dkd(student, teacher, right, temperature), abs=1e-6)


def test_dkd_is_kd_where_the_others_weigh_what_the_teacher_leaves_them():
    """Equation 6: KD = TCKD + (1 - p_right) NCKD, for a single sample."""
    student, teacher, right = drawn(samples=1)
    left = 1 - softmax(teacher / 4)[0, right[0]]
    ours = divergence.dkd(
        *tensors(student, teacher, right), 4.0, target_weight=1.0, others_weight=float(left)
    )
    assert ours.item() == pytest.approx(numpy_kd(student, teacher, 4.0), abs=1e-9)


def test_standardised_scores_forget_their_size_and_place():
    student, _, _ = tensors(*drawn())
    z = divergence.standardized(student)
    assert torch.allclose(z.mean(1), torch.zeros(16, dtype=z.dtype), atol=1e-9)
    assert torch.allclose(z.std(1), torch.ones(16, dtype=z.dtype), atol=1e-6)
    assert torch.allclose(divergence.standardized(5 * student - 3), z, atol=1e-6)


def test_several_teachers_are_the_mean_of_distributions():
    first, second, _ = drawn()
    given = tensors(first, second)
    arithmetic = divergence.combined(given, (3.0, 1.0), 4.0, "arithmetic").numpy()
    mixture = 0.75 * softmax(first / 4) + 0.25 * softmax(second / 4)
    assert np.abs(softmax(arithmetic / 4) - mixture).max() < 1e-9
    geometric = divergence.combined(given, (3.0, 1.0), 4.0, "geometric").numpy()
    product = softmax(first / 4) ** 0.75 * softmax(second / 4) ** 0.25
    product /= product.sum(1, keepdims=True)
    assert np.abs(softmax(geometric / 4) - product).max() < 1e-9


def test_scores_of_any_kind_become_logits():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    for kind, scores in {
        Scores.LOGITS: logits,
        Scores.PROBABILITIES: logits.softmax(1),
        Scores.LOG_PROBABILITIES: logits.log_softmax(1),
    }.items():
        assert torch.allclose(divergence.logits(scores, kind).softmax(1), logits.softmax(1))
    one = divergence.logits(torch.tensor([[0.8]]), Scores.INDEPENDENT)
    assert one.softmax(1)[0, 1].item() == pytest.approx(0.8)
