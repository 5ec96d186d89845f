"""What holds of every step that prunes in rounds."""

from __future__ import annotations

from modelpress.spec.step import FineTune


def check(rounds: int, fine_tune: FineTune | None) -> None:
    """Raises ValueError where there are rounds without training between them."""
    if rounds > 1 and fine_tune is None:
        raise ValueError(
            f"rounds is {rounds} but fine_tune is null: rounds without training equal one round; "
            "set fine_tune or rounds = 1"
        )
