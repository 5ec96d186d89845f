"""What each layer costs the network."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from modelpress.spec.sensitivity import METHODS, Method
from modelpress.spec.step import Step

MAX_AMOUNTS = 32


class AnalyzeSensitivity(Step):
    """Measures what the network answers with one layer alone compressed, by each method and amount; the model stays as it is."""

    paper: ClassVar[str] = (
        "Han, Pool, Tran, Dally: Learning both Weights and Connections (arXiv 1506.02626), figure 6; "
        "Li et al.: Pruning Filters for Efficient ConvNets (arXiv 1608.08710), section 3.2; "
        "Dong et al.: HAWQ-V2 (arXiv 1911.03852), whose sum of what layers cost alone is how tables are used"
    )
    changes_model: ClassVar[bool] = False
    analyzes: ClassVar[bool] = True

    kind: Literal["analyze.sensitivity"] = "analyze.sensitivity"
    methods: tuple[Method, ...] = Field(
        default=get_args(Method),
        min_length=1,
        max_length=len(METHODS),
        description="How layers are compressed. bits: weights alone, rounded to nearest. int8: weights and inputs. magnitude: the smallest "
        "weights zero. channels: the smallest removed, with all that goes with them. low_rank: the largest singular values kept.",
    )
    amounts: dict[Method, tuple[float, ...]] = Field(
        default_factory=dict,
        description="Other amounts than the usual ones, by method: bits of a weight, or a fraction of weights, channels or the rank.",
    )
    samples: int = Field(
        default=256,
        ge=1,
        le=4096,
        description="Training samples that are run, for each measurement.",
    )
    group_size: int | None = Field(
        default=32,
        ge=8,
        le=4096,
        description="With 'bits': inputs of one output that share a scale, as in quantize.bits; null: all of them.",
    )

    @property
    def needs_data(self) -> bool:
        return True

    def amounts_of(self, method: Method) -> tuple[float, ...]:
        """Those that are measured, the smallest first."""
        return tuple(sorted(set(self.amounts.get(method, METHODS[method].usual))))

    @model_validator(mode="after")
    def _methods_differ(self) -> Self:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods {list(self.methods)} must differ from each other")
        return self

    @model_validator(mode="after")
    def _amounts_are_possible(self) -> Self:
        for method, given in self.amounts.items():
            known = METHODS[method]
            if method not in self.methods:
                raise ValueError(f"amounts has '{method}', which is not among methods")
            if not 1 <= len(given) <= MAX_AMOUNTS:
                raise ValueError(
                    f"'{method}' has {len(given)} amounts, 1 to {MAX_AMOUNTS} are allowed"
                )
            for amount in given:
                whole = amount == int(amount) or not known.is_whole
                if not (known.least <= amount <= known.most and whole):
                    number = "a whole number" if known.is_whole else "a number"
                    raise ValueError(
                        f"{amount:g} is no amount of '{method}' ({known.unit}): {number} from {known.least:g} to {known.most:g}"
                    )
        return self
