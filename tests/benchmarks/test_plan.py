"""What is run: seeds per variant, the length curve, the order; and the profiles of every paper."""

import copy
import importlib
from dataclasses import dataclass

import pytest

from benchmarks import ledger
from benchmarks.claims import variants_of
from benchmarks.plan import LONGEST, LengthCurve, Plan, Training, in_order, limit_of, make_plan, problems, scaled
from benchmarks.reproduce import over_limit
from shared.errors import InputError

PAPER = {
    "slug": "made_up",
    "variant": [
        {"name": "input", "role": "input"},
        {"name": "pre", "role": "pretraining"},
        {"name": "base", "role": "baseline"},
        {"name": "wo", "role": "ablation"},
        {"name": "reads", "role": "input", "needs": "full"},
        {"name": "full", "role": "proposed", "needs": "pre"},
    ],
    "profiles": {
        "cpu": {"seeds": 2, "variants": ["base", "full"]},
        "study": {"seeds": 3, "seeds_of": {"full": 5, "base": 5}, "variants": ["input", "base", "wo", "full"]},
    },
    "study": {"length": "steps", "headline": "C1", "seeds": 3, "real": {"seeds": 2}},
    "claim": [
        {"id": "C1", "kind": "order", "metric": "dice", "variants": ["full", "base", "input"]},
        {"id": "C2", "kind": "order", "metric": "dice", "variants": ["full", "wo"]},
    ],
}


def plan_of(paper=PAPER, profile="study", dataset="standin", variants=None, seeds=None, lengths=True) -> Plan:
    return make_plan(paper, profile, dataset, dataset == "standin", variants, seeds, lengths)


def test_seeds_per_variant_and_what_is_needed_has_as_many():
    assert plan_of().seeds == {"input": 3, "base": 5, "wo": 3, "pre": 5, "full": 5}
    assert plan_of(profile="cpu").seeds == {"base": 2, "pre": 2, "full": 2}
    assert set(plan_of(seeds=1).seeds.values()) == {1}
    assert set(plan_of(dataset="real").seeds.values()) == {2}


def test_the_length_curve_trains_what_the_headline_compares_and_what_that_needs():
    plan = plan_of()
    assert plan.curve == LengthCurve("C1", ("steps",), 3, ("base", "full"), ("input",))
    others = [item for item in plan.trainings() if item.length != 1]
    assert {(item.variant, item.length) for item in others} == {
        (name, factor) for name in ("pre", "full", "base") for factor in (0.5, 2.0)
    }
    assert len(others) == 3 * 2 * 3 and len(plan.trainings()) == 21 + len(others)
    assert plan.needed_by(Training("full", 1, 2.0)) == Training("pre", 1, 2.0)
    assert Training("full", 1, 2.0).folder == "full@2/seed1" and Training("full", 1).folder == "full/seed1"
    assert plan_of(seeds=2).curve.seeds == 2 and plan_of(dataset="real").curve.seeds == 2


def test_a_variant_that_reads_a_trained_one_changes_with_the_length():
    paper = copy.deepcopy(PAPER)
    paper["claim"][0]["variants"] = ["reads", "base"]
    paper["profiles"]["study"]["variants"] = ["reads", "base"]
    curve = plan_of(paper).curve
    assert curve.trained == ("base", "reads") and curve.untrained == ()
    assert {item.variant for item in plan_of(paper).trainings() if item.length == 2} == {"reads", "base", "full", "pre"}


@pytest.mark.parametrize("change, reason", [
    ({"lengths": False}, "left out"),
    ({"variants": "full,wo"}, "C1 compares input, base, which this run leaves out"),
    ({"dataset": "elsewhere"}, "no headline claim speaks about elsewhere"),
])  # fmt: skip
def test_why_there_is_no_length_curve(change, reason):
    paper = copy.deepcopy(PAPER)
    paper["claim"][0]["datasets"] = ["standin"]
    plan = plan_of(paper, **change)
    assert plan.curve is None and reason in plan.no_curve
    assert all(item.length == 1 for item in plan.trainings())


def test_no_length_curve_where_nothing_is_trained():
    paper = copy.deepcopy(PAPER)
    paper["claim"][0]["variants"] = ["input"]
    assert "nothing is trained" in plan_of(paper).no_curve
    assert plan_of(profile="cpu").curve is None and not plan_of(profile="cpu").no_curve


def test_a_headline_list_takes_the_first_claim_on_the_data_set():
    paper = copy.deepcopy(PAPER)
    paper["study"]["headline"] = ["C1", "C2"]
    paper["claim"][0]["datasets"] = ["standin"]
    assert plan_of(paper).curve.claim == "C1" and plan_of(paper, dataset="real").curve.claim == "C2"


def test_other_claims_may_have_a_length_curve_too():
    paper = copy.deepcopy(PAPER)
    paper["study"]["curves"] = ["C2"]
    before, curve = plan_of().curve, plan_of(paper).curve
    assert curve.claim == "C1, C2" and set(before.trained) < set(curve.trained)
    assert set(curve.trained) == {"base", *variants_of(paper["claim"][1])} | set(before.trained)
    assert plan_of(paper, variants="input,base,full").curve == before  # C2 compares what this run leaves out


def test_unknown_variants_and_no_seeds_are_one_sentence():
    with pytest.raises(InputError, match="no variant nothing"):
        plan_of(variants="full,nothing")
    with pytest.raises(InputError, match="0 seeds"):
        plan_of(seeds=0)


@dataclass
class Config:
    variant: str = "full"
    steps: int = 0
    phases: tuple[int, int, int] = (100, 0, 1)
    epochs: float = 1.5
    other: int = 7


def test_lengths_are_scaled_and_stay_whole_and_positive():
    config = scaled(Config(steps=5), ("steps", "phases", "epochs"), 0.5)
    assert (config.steps, config.phases, config.epochs, config.other) == (3, (50, 0, 1), 1.0, 7)
    config = scaled(Config(steps=5), ("steps", "phases", "epochs"), 2.0)
    assert (config.steps, config.phases, config.epochs, config.other) == (10, (200, 0, 2), 3.0, 7)
    assert isinstance(config.steps, int)
    with pytest.raises(ValueError, match="no length in steps"):
        scaled(Config(steps=0), ("steps",), 2.0)
    with pytest.raises(ValueError, match="no setting"):
        scaled(Config(), ("speed",), 2.0)


def test_the_longest_chain_of_work_begins_first():
    order = in_order(plan_of(), {"input": 1, "pre": 10, "base": 50, "wo": 60, "full": 100})
    assert order[0] == Training("pre", 0, 2.0)  # 20 s, and 200 s that wait for it
    assert order.index(Training("base", 0, 2.0)) < order.index(Training("wo", 0)) < order.index(Training("base", 0))
    assert order[-1].variant == "input" and len(order) == len(set(order)) == len(plan_of().trainings())
    for item in order:
        needed = plan_of().needed_by(item)
        assert needed is None or order.index(needed) < order.index(item)
    assert in_order(plan_of(), {})[0].length == 2  # nothing was measured yet


def test_limits_on_processor_minutes():
    paper = copy.deepcopy(PAPER)
    result = {"dataset": "standin", "profile": "study", "minutes": 500.0, "processor_minutes": 60.0}
    assert over_limit(paper, result) is None
    result["processor_minutes"] = 60.1
    assert "60.1 processor minutes, and the limit is 60" in over_limit(paper, result)
    assert "limit is 10" in over_limit(paper, {**result, "profile": "cpu"})
    assert over_limit(paper, {**result, "profile": "paper"}) is None
    paper["profiles"]["study"]["limit"] = 100
    assert over_limit(paper, result) is None and limit_of(paper, "study") == 100
    assert "no pilot" in problems(paper)[0]
    paper["profiles"]["study"]["pilot"] = "at 1, 2 and 4 times the length the difference is 1.0, 2.0, 2.1"
    assert not problems(paper)
    paper["profiles"]["study"]["limit"] = LONGEST + 1
    assert "at most 120" in problems(paper)[0]
    old = {key: value for key, value in result.items() if key != "processor_minutes"}
    assert over_limit(paper, old) is None


@pytest.mark.parametrize("slug", ledger.slugs())
def test_profiles_of_every_paper(slug):
    paper = ledger.load_paper(slug)
    assert not problems(paper)
    for result in ledger.results_of(slug):
        assert over_limit(paper, result) is None
    if "study" not in paper:
        return
    train = importlib.import_module(f"papers.{slug}.train")
    claims = {claim["id"]: claim for claim in paper["claim"]}
    headline = paper["study"]["headline"]
    for name in [headline] if isinstance(headline, str) else headline:
        assert name in claims, f"[study] headline = {name} is no claim"
    claim = ledger.headline(paper, "standin")
    assert claim, "no headline claim speaks about the stand-in"
    curve = plan_of(paper).curve
    assert curve, plan_of(paper).no_curve
    compared = {name for one in ledger.curved(paper, "standin") for name in variants_of(one)}
    assert set(variants_of(claim)) <= compared == {*curve.trained, *curve.untrained}
    for name in curve.trained:
        config = train.Config(
            data="", out="", profile="study", variant=name, **{**train.PROFILES["study"], **train.VARIANTS[name]}
        )
        scaled(config, curve.settings, 0.5)
