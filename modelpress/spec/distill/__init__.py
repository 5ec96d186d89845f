"""Steps in which a network learns from others: one file for each method."""

from modelpress.spec.distill._teaching import Augment, Distill, Recover, Teacher

__all__ = ["Augment", "Distill", "Recover", "Teacher"]
