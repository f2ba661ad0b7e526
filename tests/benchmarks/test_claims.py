"""The checker of claims, on made data where the truth is known."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    check,
    check_all,
    combine,
    crossed_interval,
    side,
    variants_of,
)
from benchmarks.ledger import claims_for


def results(arrays: dict[str, np.ndarray], column="error") -> dict:
    """Ledger results from arrays (seeds, cases)."""
    return {
        name: {
            str(s): {f"case{c:02d}": {column: float(value)} for c, value in enumerate(row)}
            for s, row in enumerate(values)
        }
        for name, values in arrays.items()
    }


def draw(rng, seeds, cases, mean=0.0, seed=1.0, case=1.0, rest=1.0):
    return (
        mean
        + seed * rng.normal(size=(seeds, 1))
        + case * rng.normal(size=(1, cases))
        + rest * rng.normal(size=(seeds, cases))
    )


def test_one_seed_is_the_paired_t_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=12), rng.normal(0.3, size=12)
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    interval = crossed_interval((b - a)[None])
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_many_seeds_and_no_case_effect_is_close_to_t_over_seeds():
    rng = np.random.default_rng(1)
    values = draw(rng, 8, 200, seed=1.0, case=0.0, rest=0.1)
    of_means = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval(0.95)
    interval = crossed_interval(values)
    assert (interval.low, interval.high) == pytest.approx((of_means.low, of_means.high), rel=0.05)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [(0, 1, 1), (1, 0.1, 0.1), (1, 1, 1), (0.3, 1, 0.3)])
def test_rate_of_false_verdicts_without_an_effect(seeds, spread):
    """No effect, chance in seeds and in cases: at most 5 % of verdicts for each side, whatever dominates."""
    rng = np.random.default_rng(2)
    trials = 1500
    verdicts = [side(crossed_interval(draw(rng, seeds, 12, 0.0, *spread))) for _ in range(trials)]
    assert verdicts.count(REPRODUCED) / trials < 0.05
    assert verdicts.count(NOT_REPRODUCED) / trials < 0.05


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_a_clear_effect_is_found_in_its_direction(direction):
    rng = np.random.default_rng(3)
    trials = 300
    verdicts = [side(crossed_interval(draw(rng, 3, 12, 3 * direction, 0.2, 1, 0.5))) for _ in range(trials)]
    expected = REPRODUCED if direction > 0 else NOT_REPRODUCED
    assert verdicts.count(expected) / trials > 0.9


def test_one_seed_gives_no_verdict_unless_nothing_is_random():
    tables = results({"a": np.full((1, 8), 1.0) + np.arange(8) / 100, "b": np.full((1, 8), 2.0)})
    claim = {"id": "C", "kind": "order", "metric": "error", "variants": ["a", "b"]}
    assert check(claim, tables, "lower")["verdict"] == INCONCLUSIVE
    assert check({**claim, "deterministic": True}, tables, "lower")["verdict"] == REPRODUCED


def clear(rng, **means):
    return results({name: mean + 0.05 * rng.normal(size=(3, 10)) for name, mean in means.items()})


@pytest.mark.parametrize("better, verdict", [("lower", REPRODUCED), ("higher", NOT_REPRODUCED)])
def test_order_reads_best_to_worst(better, verdict):
    tables = clear(np.random.default_rng(4), good=1.0, middle=2.0, bad=3.0)
    claim = {"id": "C", "kind": "order", "metric": "error", "variants": ["good", "middle", "bad"]}
    found = check(claim, tables, better)
    assert found["verdict"] == verdict and len(found["evidence"]) == 2
    assert abs(found["evidence"][0]["mean"]) == pytest.approx(1.0, abs=0.1)


def test_best_needs_all_and_one_contradiction_is_enough():
    tables = clear(np.random.default_rng(5), full=2.0, worse=3.0, better=1.0)
    claim = {"id": "C", "kind": "best", "metric": "error", "variant": "full", "than": ["worse"]}
    assert check(claim, tables, "lower")["verdict"] == REPRODUCED
    assert check({**claim, "than": ["worse", "better"]}, tables, "lower")["verdict"] == NOT_REPRODUCED
    assert combine([REPRODUCED, INCONCLUSIVE]) == INCONCLUSIVE


def test_trend_is_the_slope():
    tables = clear(np.random.default_rng(6), n1=5.0, n3=3.0, n5=1.0)
    claim = {"id": "C", "kind": "trend", "metric": "error", "variants": ["n1", "n3", "n5"], "x": [1, 3, 5]}
    found = check(claim, tables, "lower")
    assert found["verdict"] == REPRODUCED
    assert found["evidence"][0]["mean"] == pytest.approx(1.0, abs=0.05)  # falls by 1 per unit of x
    assert check({**claim, "direction": "worse"}, tables, "lower")["verdict"] == NOT_REPRODUCED
    assert check(claim, tables, "higher")["verdict"] == NOT_REPRODUCED


def test_contrast_of_gains():
    tables = clear(np.random.default_rng(7), n1=5.0, n3=2.0, n5=1.9)
    weights = {"n1": 1, "n3": -2, "n5": 1}  # (n1 - n3) - (n3 - n5): the first gain is the larger
    claim = {"id": "C", "kind": "contrast", "metric": "error", "weights": weights, "direction": "positive"}
    assert check(claim, tables, "lower")["verdict"] == REPRODUCED
    assert check({**claim, "direction": "negative"}, tables, "lower")["verdict"] == NOT_REPRODUCED
    assert set(variants_of(claim)) == {"n1", "n3", "n5"}


@pytest.mark.parametrize("value, tolerance, verdict", [
    (1.0, 0.5, REPRODUCED), (3.0, 0.5, NOT_REPRODUCED), (1.0, 0.001, INCONCLUSIVE),
])  # fmt: skip
def test_value_within_a_tolerance(value, tolerance, verdict):
    tables = clear(np.random.default_rng(8), a=1.0)
    claim = {
        "id": "C",
        "kind": "value",
        "metric": "error",
        "variant": "a",
        "value": value,
        "tolerance": tolerance,
    }
    assert check(claim, tables, "lower")["verdict"] == verdict


def test_only_shared_seeds_and_cases_are_compared():
    tables = clear(np.random.default_rng(9), a=1.0, b=2.0)
    del tables["a"]["2"], tables["b"]["0"]["case03"]
    claim = {"id": "C", "kind": "order", "metric": "error", "variants": ["a", "b"]}
    evidence = check(claim, tables, "lower")["evidence"][0]
    assert (evidence["seeds"], evidence["cases"]) == (2, 9)
    some = check({**claim, "cases": "case00"}, tables, "lower")["evidence"][0]
    assert some["cases"] == 1


def test_what_was_not_run_or_is_not_finite_is_inconclusive():
    tables = clear(np.random.default_rng(10), a=1.0, b=2.0)
    claim = {"id": "C", "kind": "order", "metric": "error", "variants": ["a", "b", "c"]}
    assert "not run: c" in check(claim, tables, "lower")["reason"]
    tables["b"]["1"]["case00"]["error"] = None
    found = check({**claim, "variants": ["a", "b"]}, tables, "lower")
    assert found["verdict"] == INCONCLUSIVE and "not finite" in found["reason"]


def test_claims_speak_about_data_sets():
    paper = {"claim": [{"id": "A"}, {"id": "B", "datasets": ["retina*"]}]}
    assert [claim["id"] for claim in claims_for(paper, "standin")] == ["A"]
    assert [claim["id"] for claim in claims_for(paper, "retina56")] == ["A", "B"]


@pytest.mark.parametrize(
    "control, proposed, expected",
    [(2.0, 1.0, REPRODUCED), (3.0, 1.0, INCONCLUSIVE), (4.0, 1.0, INCONCLUSIVE), (4.0, 5.0, NOT_REPRODUCED)],
)
def test_a_dead_baseline_is_no_proof(control, proposed, expected):
    """The baseline must beat the input (3.0); failing that, beating the baseline is inconclusive, never softer."""
    tables = clear(np.random.default_rng(9), proposed=proposed, baseline=control, input=3.0)
    paper = {
        "metric": [{"column": "error", "better": "lower"}],
        "claim": [
            {"id": "C0", "kind": "order", "metric": "error", "variants": ["baseline", "input"]},
            {"id": "C1", "kind": "order", "metric": "error", "variants": ["proposed", "baseline"], "requires": ["C0"]},
            {"id": "C2", "kind": "order", "metric": "error", "variants": ["input", "proposed"], "datasets": ["real"]},
        ],
    }
    found = check_all(paper, "standin", tables)
    assert list(found) == ["C0", "C1"] and found["C1"]["verdict"] == expected
    assert found["C1"]["evidence"] and ("control C0 is" in found["C1"].get("reason", "")) == (expected == INCONCLUSIVE)
    assert found["C0"] == check(paper["claim"][0], tables, "lower")


def test_a_control_that_is_not_checked_does_not_count():
    tables = clear(np.random.default_rng(10), a=1.0, b=2.0)
    claim = {"id": "C1", "kind": "order", "metric": "error", "variants": ["a", "b"], "requires": ["C0"]}
    paper = {"metric": [{"column": "error", "better": "lower"}], "claim": [claim]}
    assert "C0 is not checked" in check_all(paper, "standin", tables)["C1"]["reason"]


def test_a_result_without_the_metric_is_inconclusive():
    claim = {"id": "C", "kind": "order", "metric": "later", "variants": ["a", "b"]}
    found = check(claim, clear(np.random.default_rng(11), a=1.0, b=2.0), "lower")
    assert found["verdict"] == INCONCLUSIVE and "later" in found["reason"]
