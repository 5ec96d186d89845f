"""Each rule of advice, on reports whose figures call for it and on such that do not."""

from __future__ import annotations

from typing import Any

import pytest

from modelpress.spec import advice as spec
from modelpress.spec.recipe import parse
from modelpress.spec.report import Effect, LayerError, Report, Stage
from tests.client import reports
from workers.engine import advice
from workers.engine.errors import NothingChanged

INT8 = {"kind": "quantize.int8"}
FINE_TUNED = {"kind": "prune.magnitude", "sparsity": 0.8, "fine_tune": {"epochs": 1}}


def layers(*shares: float) -> tuple[LayerError, ...]:
    return tuple(
        LayerError(layer=f"w{i}", elements=100, relative_l2_difference=0.1, share=share)
        for i, share in enumerate(shares)
    )


def report(
    step: dict[str, Any],
    *,
    lost: float = 0.0,
    ratio: float = 0.5,
    shares: tuple[float, ...] = (0.5, 0.5),
    entropy: int = 400_000,
    bits: float = 8,
    data: bool = True,
    then: tuple[dict[str, Any], ...] = (),
) -> Report:
    """Of a step that lost so much accuracy and takes so much of the time before it."""
    before = reports.stage("baseline", None, file_bytes=1_000_000, accuracy=0.98)
    before = before.model_copy(update={"latency": before.latency.model_copy(update={"ratio": 1.0})})
    after = reports.stage(step["kind"], 0, file_bytes=400_000, accuracy=0.98 - lost)
    size = after.size.model_copy(update={"entropy_bytes": entropy, "bits_per_parameter": bits})
    latency = after.latency.model_copy(update={"ratio": ratio})
    found = {"size": size, "latency": latency, "layers": layers(*shares)}
    changes: dict[str, Any] = {
        "recipe": parse({"steps": [step, *then]}),
        "stages": (before, after.model_copy(update=found)),
    }
    if not data:
        changes["data"] = None
    return reports.report().model_copy(update=changes)


def told(of: Report, rule: advice.Rule) -> list[list[dict[str, Any]]]:
    """The steps that the recipe has by each advice of one rule, without what is default."""
    [case] = [
        advice.Case(of, 0, of.recipe.steps[0], before, after) for before, after in [of.stages[:2]]
    ]
    found = []
    for one in rule(case):
        assert one.text.strip()
        changed = spec.apply(of.recipe, one)
        dumped = [step.model_dump(mode="json", exclude_defaults=True) for step in changed.steps]
        found.append([{"kind": s.kind, **d} for s, d in zip(changed.steps, dumped, strict=True)])
    return found


WORST = (0.7, 0.2, 0.1)


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (INT8, {**INT8, "exclude": ["w0"]}),
        ({**INT8, "exclude": ["a*"]}, {**INT8, "exclude": ["a*", "w0"]}),
        (
            {"kind": "quantize.cluster"},
            {"kind": "quantize.cluster", "overrides": [{"layers": "w0", "bits": 8}]},
        ),
        (FINE_TUNED, {**FINE_TUNED, "overrides": [{"layers": "w0", "sparsity": 0.4}]}),
        (
            {"kind": "quantize.bits", "bits": 3},
            {
                "kind": "quantize.bits",
                "mixed": {"choices": [4, 6, 8], "max_accuracy_drop": 0.005},
            },
        ),
    ],
)
def test_the_layer_that_makes_most_of_the_error_is_spared(step, wanted):
    [[changed]] = told(report(step, lost=0.02, shares=WORST), advice.spare_the_worst)
    for key, value in wanted.items():
        assert changed[key] == value, key
    assert changed.keys() == wanted.keys()


def test_nothing_is_spared_where_errors_are_even_or_nothing_was_lost():
    assert told(report(INT8, lost=0.02), advice.spare_the_worst) == []
    assert told(report(INT8, lost=0.004, shares=WORST), advice.spare_the_worst) == []
    assert told(report(INT8, lost=0.02, shares=(1.0,)), advice.spare_the_worst) == []
    assert told(report(INT8, lost=0.02, shares=WORST, data=False), advice.spare_the_worst) == []


def test_a_name_with_brackets_is_a_pattern_of_itself():
    of = report(INT8, lost=0.02, shares=WORST)
    named = (of.stages[1].layers[0].model_copy(update={"layer": "block[0].w"}),)
    stage = of.stages[1].model_copy(update={"layers": (*named, *of.stages[1].layers[1:])})
    of = of.model_copy(update={"stages": (of.stages[0], stage)})
    [one] = [a for a in advice.of(of) if "exclude" in a.fragment]
    [step] = spec.apply(of.recipe, one).steps
    assert step.excludes("block[0].w")
    assert not step.excludes("block0.w")


@pytest.mark.parametrize(
    ("tried", "added"),
    [
        ({"per_channel": False}, {"per_channel": None}),
        ({"mode": "dynamic"}, {"mode": None}),
        ({}, {"calibration": "mse"}),
        ({"calibration": "mse"}, {"equalize": True, "bias_correction": True}),
        (
            {"calibration": "mse", "equalize": True, "bias_correction": True},
            {"adaround": {}},
        ),
    ],
)
def test_int8_goes_up_a_ladder_of_refinements(tried, added):
    [[changed]] = told(report({**INT8, **tried}, lost=0.02), advice.refine_int8)
    wanted = {k: v for k, v in {**INT8, **tried, **added}.items() if v is not None}
    assert changed == wanted
    assert told(report({**INT8, **tried}, lost=0.001), advice.refine_int8) == []


def test_a_ladder_ends():
    everything = {"calibration": "mse", "equalize": True, "bias_correction": True, "adaround": {}}
    assert told(report({**INT8, **everything}, lost=0.02), advice.refine_int8) == []


def test_training_takes_the_place_of_calibration():
    [[changed]] = told(report({**INT8, "exclude": ["a"]}, lost=0.02), advice.train_int8)
    assert changed == {"kind": "quantize.qat", "exclude": ["a"]}
    assert told(report(INT8), advice.train_int8) == []


@pytest.mark.parametrize(
    ("tried", "added"),
    [
        ({}, {"method": "gptq"}),
        ({"method": "gptq", "group_size": 128}, {"group_size": None}),
        ({"method": "gptq", "bits": 3}, {"bits": None}),
        ({"method": "gptq", "bits": 5}, {"bits": 6}),
    ],
)
def test_bits_goes_up_a_ladder_too(tried, added):
    step = {"kind": "quantize.bits", **tried}
    [[changed]] = told(report(step, lost=0.02), advice.refine_bits)
    assert changed == {k: v for k, v in {**step, **added}.items() if v is not None}
    assert told(report(step), advice.refine_bits) == []


@pytest.mark.parametrize(
    ("step", "added"),
    [
        ({"kind": "prune.magnitude", "sparsity": 0.8}, {"fine_tune": {}}),
        ({"kind": "prune.channels", "fraction": 0.5}, {"fine_tune": {}}),
        ({"kind": "quantize.cluster"}, {"fine_tune": {}}),
        ({"kind": "rewrite.depthwise"}, {"fine_tune": {}}),
        ({"kind": "quantize.qat"}, {"training": {"epochs": 6}}),
    ],
)
def test_what_could_have_been_trained_is(step, added):
    [[changed]] = told(report(step, lost=0.02), advice.train_what_is_left)
    assert changed == {**step, **added}
    assert told(report(step), advice.train_what_is_left) == []


def test_what_was_trained_is_not_told_to_train():
    assert told(report(FINE_TUNED, lost=0.02), advice.train_what_is_left) == []


def test_without_labels_the_uploaded_model_teaches():
    step = {"kind": "prune.magnitude", "sparsity": 0.8}
    [[changed]] = told(unlabelled(report(step), 0.9), advice.train_what_is_left)
    assert changed == {**step, "fine_tune": {}, "recover": {"distill": {}}}


@pytest.mark.parametrize("step", [FINE_TUNED, {"kind": "quantize.binary"}])
def test_what_was_trained_by_labels_may_learn_from_the_upload(step):
    [[changed]] = told(report(step, lost=0.02), advice.learn_from_the_upload)
    assert changed == {**step, "recover": {"distill": {}}}
    taught = {**step, "recover": {"distill": {}}}
    assert told(report(taught, lost=0.02), advice.learn_from_the_upload) == []
    assert told(report(step), advice.learn_from_the_upload) == []


def test_what_training_changes_is_no_error():
    step = {"kind": "distill.logits"}
    assert told(report(step, lost=0.02, shares=WORST), advice.spare_the_worst) == []


def test_pruning_that_cost_nothing_goes_further():
    [[changed]] = told(report(FINE_TUNED), advice.go_further)
    assert changed["sparsity"] == 0.9
    [[changed]] = told(report({"kind": "prune.channels", "macs_ratio": 2.0}), advice.go_further)
    assert changed["macs_ratio"] == 3
    assert told(report(FINE_TUNED, lost=0.002), advice.go_further) == []


def test_channels_go_where_zeros_did_not_help():
    [[first, second]] = told(report(FINE_TUNED, ratio=1.0), advice.remove_channels)
    assert first == {"kind": "prune.channels", "macs_ratio": 2.0, "fine_tune": {}}
    assert second == FINE_TUNED
    assert told(report(FINE_TUNED, ratio=0.9), advice.remove_channels) == []
    channels = {"kind": "prune.channels", "macs_ratio": 2.0}
    assert told(report(FINE_TUNED, ratio=1.0, then=(channels,)), advice.remove_channels) == []


def test_integers_that_are_slower_are_stored_only():
    [[changed]] = told(report(INT8, ratio=1.2), advice.keep_floats)
    assert changed == {"kind": "quantize.bits", "bits": 8}
    assert told(report(INT8, ratio=1.0), advice.keep_floats) == []


def test_floats_are_quantized():
    [[_, added]] = told(report(FINE_TUNED, bits=32), advice.quantize)
    assert added == INT8
    [[_, added]] = told(report(FINE_TUNED, bits=32, data=False), advice.quantize)
    assert added == {**INT8, "mode": "dynamic"}
    assert told(report(FINE_TUNED, bits=32, then=(INT8,)), advice.quantize) == []
    assert told(report(FINE_TUNED, bits=16), advice.quantize) == []


def test_a_file_that_is_larger_than_its_entropy_is_packed():
    [[_, added]] = told(report(INT8, entropy=300_000), advice.pack)
    assert added == {"kind": "code.entropy"}
    assert told(report(INT8, entropy=390_000), advice.pack) == []
    packed = ({"kind": "code.huffman"},)
    assert told(report(INT8, entropy=300_000, then=packed), advice.pack) == []


def unlabelled(of: Report, agreement: float) -> Report:
    """The same without labels; so many answers stayed in the step."""
    quality = of.stages[1].quality
    assert quality is not None
    plain = quality.model_copy(update={"accuracy": None})
    effect = Effect(samples=100, agreement=agreement, relative_l2_difference=0.1)
    stages: list[Stage] = [s.model_copy(update={"quality": plain}) for s in of.stages]
    stages[1] = stages[1].model_copy(update={"effect": effect})
    return of.model_copy(update={"stages": tuple(stages)})


def test_without_labels_answers_that_changed_count():
    of = report(INT8, shares=WORST)
    [one] = [a for a in advice.of(unlabelled(of, 0.98)) if "exclude" in a.fragment]
    assert "changed 2.00 points of the answers" in one.text
    assert not [a for a in advice.of(unlabelled(of, 0.999)) if "exclude" in a.fragment]


def test_a_step_that_changed_nothing_says_itself_what_to_do():
    error = NothingChanged("no weight went", hint="ask for more")
    one = advice.of_failure(1, error)
    assert one.text == "no weight went; ask for more"
    recipe = parse({"steps": [FINE_TUNED, INT8]})
    assert [step.kind for step in spec.apply(recipe, one).steps] == ["prune.magnitude"]


def test_every_rule_is_asked():
    rules = [value for name, value in vars(advice).items() if callable(value) and name.islower()]
    defined = {r for r in rules if getattr(r, "__module__", "") == advice.__name__}
    others = {advice.of, advice.of_failure}
    assert {r for r in defined if not r.__name__.startswith("_")} - others == set(advice.RULES)
