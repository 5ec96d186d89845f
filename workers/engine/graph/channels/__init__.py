"""Structured pruning by label propagation: run the network on labels, see which channels go together, take them out.

`plan.make` finds what can go, `surgery.remove` takes it out. The rules of operators are in `_rules`.
"""

from workers.engine.graph.channels import plan, surgery

__all__ = ["plan", "surgery"]
