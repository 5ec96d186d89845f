"""Steps in which a network learns from others: one file for each method."""

from modelpress.spec.distill._student import DistillTraining, Student
from modelpress.spec.distill._teaching import Augment, Distill, Recover, Teacher
from modelpress.spec.distill.features import DistillFeatures, LayerPair
from modelpress.spec.distill.logits import Distilling, DistillLogits

__all__ = [
    "Augment",
    "Distill",
    "DistillFeatures",
    "DistillLogits",
    "DistillTraining",
    "Distilling",
    "LayerPair",
    "Recover",
    "Student",
    "Teacher",
]
