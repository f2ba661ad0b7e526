"""The checker of claims, on made data where the truth is known."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.claims import (
    INCONCLUSIVE,
    NOT_DECIDABLE,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    check,
    check_all,
    combine,
    crossed_interval,
    half_width,
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


def result_of(tables: dict, profile="cpu", **more) -> dict:
    """What `check_all` reads of a result."""
    return {
        "dataset": "standin",
        "profile": profile,
        "seeds": {n: len(t) for n, t in tables.items()},
        "results": tables,
        **more,
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
    values = draw(rng, 8, 200, seed=1.0, case=0.0, rest=0.01)
    of_means = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval(0.95)
    interval = crossed_interval(values)
    assert (interval.low, interval.high) == pytest.approx((of_means.low, of_means.high), rel=0.05)


def satterthwaite(seed, case, rest, seeds, cases):
    """Half width with Satterthwaite's degrees of freedom on the summed variance, for comparison."""
    seed, case = np.maximum(seed, rest), np.maximum(case, rest)
    total = seed + case - rest
    freedom = total**2 / (seed**2 / (seeds - 1) + case**2 / (cases - 1) + rest**2 / ((seeds - 1) * (cases - 1)))
    return stats.t.ppf(0.975, freedom) * np.sqrt(total / (seeds * cases))


@pytest.mark.parametrize("seeds", [2, 3, 4, 5])
@pytest.mark.parametrize("cases", [2, 3, 5, 12, 20, 50])
def test_the_interval_covers_what_it_says(seeds, cases):
    """At least 0.95, whatever the ratio of the variances of seeds, cases and rest.

    The mean squares are drawn from their distributions; the mean is independent of them, so that given them the
    coverage is exact. What is left of chance is a standard error of about 0.0003, and up to 0.002 for 2 seeds.
    """
    rng = np.random.default_rng(12)
    trials, freedom = 20_000, (seeds - 1, cases - 1, (seeds - 1) * (cases - 1))
    ours, usual, widths = [], [], []
    for seed in (0, 0.1, 0.2, 0.3, 0.5, 1, 3):
        for case in (0, 0.3, 1, 3):
            variances = np.array([cases * seed**2 + 1, seeds * case**2 + 1, 1.0])
            squares = [v * rng.chisquare(f, trials) / f for v, f in zip(variances, freedom)]
            error = np.sqrt((variances[0] + variances[1] - 1) / (seeds * cases))
            half, other = half_width(*squares, seeds, cases), satterthwaite(*squares, seeds, cases)
            ours.append(np.mean(2 * stats.norm.cdf(half / error) - 1))
            usual.append(np.mean(2 * stats.norm.cdf(other / error) - 1))
            widths.append(np.median(half) / np.median(other))
    print(f"{seeds} seeds x {cases} cases: coverage {min(ours):.3f} to {max(ours):.3f}, ", end="")
    print(f"Satterthwaite's {min(usual):.3f} to {max(usual):.3f}; width relative to it {np.mean(widths):.2f}")
    assert min(ours) > 0.947


def test_the_interval_is_made_of_the_mean_squares():
    """Against a two-way analysis of variance, written as sums over a table."""
    values = draw(np.random.default_rng(13), 3, 7, mean=2.0)
    sums = {"seed": 0.0, "case": 0.0, "rest": 0.0}
    for s in range(3):
        for c in range(7):
            of_seed, of_case = values[s].mean() - values.mean(), values[:, c].mean() - values.mean()
            sums["seed"] += of_seed**2 / 2
            sums["case"] += of_case**2 / 6
            sums["rest"] += (values[s, c] - values.mean() - of_seed - of_case) ** 2 / 12
    interval = crossed_interval(values)
    expected = half_width(*sums.values(), 3, 7)
    assert (interval.high - interval.low) / 2 == pytest.approx(expected)
    assert interval.low + expected == pytest.approx(values.mean())
    over_seeds = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval(0.95)
    over_cases = stats.ttest_1samp(values.mean(axis=0), 0).confidence_interval(0.95)
    assert 2 * expected >= max(over_seeds.high - over_seeds.low, over_cases.high - over_cases.low)
    assert crossed_interval(np.full((3, 7), 2.0)).low == 2.0


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


def clear(rng, seeds=3, **means):
    return results({name: mean + 0.05 * rng.normal(size=(seeds, 10)) for name, mean in means.items()})


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


def test_what_was_not_run_has_failed_or_is_not_finite():
    tables = clear(np.random.default_rng(10), a=1.0, b=2.0)
    claim = {"id": "C", "kind": "order", "metric": "error", "variants": ["a", "b", "c"]}
    assert check(claim, tables, "lower") == {"verdict": NOT_RUN, "reason": "not run: c", "evidence": []}
    assert check(claim, tables, "lower", ["a", "b", "c"])["verdict"] == INCONCLUSIVE
    assert check(claim, tables, "lower", ["a", "b", "c"])["reason"] == "failed: c"
    tables["b"]["1"]["case00"]["error"] = None
    found = check({**claim, "variants": ["a", "b"]}, tables, "lower")
    assert found["verdict"] == INCONCLUSIVE and "not finite" in found["reason"]


@pytest.mark.parametrize("margin, verdict", [
    (0.5, REPRODUCED), (1.0, INCONCLUSIVE), (2.0, NOT_REPRODUCED), (-0.5, REPRODUCED),
])  # fmt: skip
def test_better_by_a_margin(margin, verdict):
    tables = clear(np.random.default_rng(4), a=1.0, b=2.0)
    claim = {"id": "C", "kind": "order", "metric": "error", "variants": ["a", "b"], "margin": margin}
    assert check(claim, tables, "lower")["verdict"] == verdict


@pytest.mark.parametrize("worse, verdict", [(0.0, REPRODUCED), (0.5, INCONCLUSIVE), (2.0, NOT_REPRODUCED)])
def test_on_par_is_not_worse_by_more_than_a_margin(worse, verdict):
    tables = clear(np.random.default_rng(4), a=1.0 + worse, b=1.0)
    claim = {"id": "C", "kind": "order", "metric": "error", "variants": ["a", "b"], "margin": -0.5}
    assert check(claim, tables, "lower")["verdict"] == verdict
    assert check({**claim, "margin": 0.0}, tables, "lower")["verdict"] != REPRODUCED


@pytest.mark.parametrize("better", ["lower", "higher"])
@pytest.mark.parametrize("difference, tolerance, verdict", [
    (0.0, 0.5, REPRODUCED), (1.0, 0.5, NOT_REPRODUCED), (-1.0, 0.5, NOT_REPRODUCED), (0.5, 0.5, INCONCLUSIVE),
])  # fmt: skip
def test_equal_has_two_sides(better, difference, tolerance, verdict):
    tables = clear(np.random.default_rng(4), a=1.0 + difference, b=1.0)
    claim = {"id": "C", "kind": "equal", "metric": "error", "variants": ["a", "b"], "tolerance": tolerance}
    assert check(claim, tables, better)["verdict"] == verdict


def test_what_can_not_be_decided_keeps_its_numbers_and_does_not_count():
    tables = clear(np.random.default_rng(4), a=1.0, b=2.0)
    claim = {"id": "C", "kind": "order", "metric": "error", "variants": ["a", "b"], "decidable": "a gap of one case"}
    found = check(claim, tables, "lower")
    assert found["verdict"] == NOT_DECIDABLE and found["reason"] == "a gap of one case" and found["evidence"]
    assert check({**claim, "variants": ["a", "c"]}, tables, "lower")["verdict"] == NOT_DECIDABLE


def test_evidence_says_what_it_could_have_seen():
    tables = results({name: draw(np.random.default_rng(4), 3, 10, seed=0.5) for name in ("a", "b")})
    claim = {"id": "C", "kind": "order", "metric": "error", "variants": ["a", "b"]}
    row = check(claim, tables, "lower")["evidence"][0]
    assert row["half_width"] == pytest.approx((row["high"] - row["low"]) / 2, rel=1e-4)
    assert row["mean"] == pytest.approx(row["means"]["b"] - row["means"]["a"], abs=1e-5)


def test_each_contrast_takes_the_seeds_that_its_variants_have():
    rng = np.random.default_rng(4)
    tables = results({n: m + 0.05 * rng.normal(size=(s, 10)) for n, m, s in [("a", 1, 5), ("b", 2, 5), ("c", 3, 3)]})
    claim = {"id": "C", "kind": "order", "metric": "error", "variants": ["a", "b", "c"]}
    assert [row["seeds"] for row in check(claim, tables, "lower")["evidence"]] == [5, 3]


def test_claims_speak_about_data_sets():
    paper = {"claim": [{"id": "A"}, {"id": "B", "datasets": ["retina*"]}]}
    assert [claim["id"] for claim in claims_for(paper, "standin")] == ["A"]
    assert [claim["id"] for claim in claims_for(paper, "retina56")] == ["A", "B"]


@pytest.mark.parametrize(
    "control, proposed, expected",
    [
        (2.0, 1.0, REPRODUCED),
        (3.0, 1.0, INCONCLUSIVE),
        (4.0, 1.0, INCONCLUSIVE),
        (4.0, 5.0, INCONCLUSIVE),
        (2.0, 2.5, NOT_REPRODUCED),
    ],
)
def test_a_dead_baseline_is_no_proof(control, proposed, expected):
    """The baseline must beat the input (3.0); failing that, beating it says nothing, and being beaten by it neither."""
    tables = clear(np.random.default_rng(9), proposed=proposed, baseline=control, input=3.0)
    paper = {
        "metric": [{"column": "error", "better": "lower"}],
        "claim": [
            {"id": "C0", "kind": "order", "metric": "error", "variants": ["baseline", "input"]},
            {"id": "C1", "kind": "order", "metric": "error", "variants": ["proposed", "baseline"], "requires": ["C0"]},
            {"id": "C2", "kind": "order", "metric": "error", "variants": ["input", "proposed"], "datasets": ["real"]},
        ],
    }
    found = check_all(paper, result_of(tables))
    assert list(found) == ["C0", "C1"] and found["C1"]["verdict"] == expected
    assert found["C1"]["evidence"] and ("control C0 is" in found["C1"].get("reason", "")) == (expected == INCONCLUSIVE)
    assert found["C0"] == {**check(paper["claim"][0], tables, "lower"), "control": True}


def test_a_control_that_is_not_checked_does_not_count():
    tables = clear(np.random.default_rng(10), a=1.0, b=2.0)
    claim = {"id": "C1", "kind": "order", "metric": "error", "variants": ["a", "b"], "requires": ["C0"]}
    paper = {"metric": [{"column": "error", "better": "lower"}], "claim": [claim]}
    assert "C0 is not checked" in check_all(paper, result_of(tables))["C1"]["reason"]


def test_a_result_without_the_metric_is_inconclusive():
    claim = {"id": "C", "kind": "order", "metric": "later", "variants": ["a", "b"]}
    found = check(claim, clear(np.random.default_rng(11), a=1.0, b=2.0), "lower")
    assert found["verdict"] == INCONCLUSIVE and "later" in found["reason"]


def test_a_profile_has_claims_of_its_own_and_their_controls():
    tables = clear(np.random.default_rng(10), a=1.0, b=2.0, c=3.0)
    claims = [
        {"id": "C0", "kind": "order", "metric": "error", "variants": ["b", "c"]},
        {"id": "C1", "kind": "order", "metric": "error", "variants": ["a", "b"], "requires": ["C0"]},
        {"id": "C2", "kind": "order", "metric": "error", "variants": ["a", "c"]},
        {"id": "C3", "kind": "order", "metric": "error", "variants": ["a", "c"], "decidable": "no"},
    ]
    paper = {
        "metric": [{"column": "error", "better": "lower"}],
        "claim": claims,
        "profiles": {"cpu": {"claims": ["C1"]}},
    }
    words = {name: found["verdict"] for name, found in check_all(paper, result_of(tables)).items()}
    assert words == {"C0": REPRODUCED, "C1": REPRODUCED, "C2": NOT_RUN, "C3": NOT_DECIDABLE}
    words = {name: found["verdict"] for name, found in check_all(paper, result_of(tables, "study")).items()}
    assert words["C2"] == REPRODUCED


def test_a_scan_on_two_atlases_is_one_case():
    rng = np.random.default_rng(5)
    table = {}
    for name in ("good", "bad"):
        scans = rng.normal(size=6) + (name == "good")
        rows = {f"set/S{k}-{atlas}": {"dice": scans[k]} for k in range(6) for atlas in "AB"}
        table[name] = {
            str(seed): {case: {"dice": row["dice"] + 0.01 * seed} for case, row in rows.items()} for seed in range(3)
        }
    claim = {"id": "C1", "kind": "order", "metric": "dice", "variants": ["good", "bad"]}
    (twice,) = check(claim, table, "higher")["evidence"]
    (once,) = check({**claim, "unit": "-[^-/]*$"}, table, "higher")["evidence"]
    assert (twice["cases"], once["cases"]) == (12, 6) and twice["mean"] == pytest.approx(once["mean"])
    assert once["half_width"] > 1.3 * twice["half_width"]


# --- the length curve ------------------------------------------------------------------------------------


def a_study(rng, gaps: dict[str, float], better="lower", seeds=5, margin=0.0) -> tuple[dict, dict]:
    """A made-up paper, whose baseline is worse by `gaps[length]` at half, full and double length, and its result."""
    sign = 1 if better == "lower" else -1

    def tables(gap, seeds):
        return clear(rng, seeds=seeds, full=5.0, baseline=5.0 + sign * gap, input=5.0 + sign * 9)

    lengths = {"setting": ["steps"], "values": {"0.5": {"steps": 50}, "1": {"steps": 100}, "2": {"steps": 200}}}
    lengths["results"] = {length: tables(gaps[length], 3) for length in ("0.5", "2")}
    claim = {"id": "C1", "kind": "order", "metric": "error", "variants": ["full", "baseline"], "margin": margin}
    claim["requires"] = ["C0"]
    control = {"id": "C0", "kind": "order", "metric": "error", "variants": ["baseline", "input"]}
    roles = {"full": "proposed", "baseline": "baseline", "input": "input"}
    paper = {
        "variant": [{"name": name, "role": role} for name, role in roles.items()],
        "metric": [{"column": "error", "better": better}],
        "claim": [control, claim, {**claim, "id": "C2"}, {**claim, "id": "C3", "variants": ["full", "input"]}],
        "study": {"length": "steps", "headline": "C1"},
    }
    return paper, result_of(tables(gaps["1"], seeds), "study", lengths=lengths)


@pytest.mark.parametrize("better", ["lower", "higher"])
@pytest.mark.parametrize("gaps", [(2.0, 1.0, 0.3), (2.0, 1.0, -1.0), (-2.0, -1.0, -0.3), (0.3, 1.0, -0.1)])
def test_an_effect_that_vanishes_with_training_is_still_moving(better, gaps):
    paper, result = a_study(np.random.default_rng(14), dict(zip(("0.5", "1", "2"), gaps)), better)
    found = check_all(paper, result)
    assert found["C1"]["verdict"] == INCONCLUSIVE and "still moving with training" in found["C1"]["reason"]
    (row,) = found["C1"]["lengths"]
    assert row["moving"] and not row["growing"] and row["seeds"] == 3
    assert list(row["means"].values()) == pytest.approx(list(gaps), abs=0.1)
    assert found["C2"] == found["C1"], "the same variants, so the same curve"
    assert "lengths" not in found["C0"], "a control says that a baseline works at all"
    assert found["C3"]["verdict"] == REPRODUCED and "lengths" not in found["C3"], "the input is not in the headline"


@pytest.mark.parametrize("gap, verdict", [(1.0, REPRODUCED), (-1.0, NOT_REPRODUCED)])
def test_an_effect_that_grows_is_decided(gap, verdict):
    paper, result = a_study(np.random.default_rng(14), {"0.5": gap / 2, "1": gap, "2": 2 * gap})
    found = check_all(paper, result)["C1"]
    (row,) = found["lengths"]
    assert found["verdict"] == verdict and row["growing"] and not row["moving"]


@pytest.mark.parametrize("kind", ["equal", "value"])
def test_a_value_may_not_leave_its_range(kind):
    for double, moving in ((-1.5, True), (2.0, True), (0.1, False)):
        paper, result = a_study(np.random.default_rng(14), {"0.5": 0.5, "1": 0.5, "2": double})
        asked = {"variants": ["full", "baseline"]} if kind == "equal" else {"variant": "baseline", "value": 5.5}
        paper["claim"][1] = {"id": "C1", "kind": kind, "metric": "error", "tolerance": 1.0, **asked}
        found = check_all(paper, result)["C1"]
        assert found["verdict"] == (INCONCLUSIVE if moving else REPRODUCED)
        assert found["lengths"][0]["moving"] == moving and not found["lengths"][0]["growing"]


def test_a_few_seeds_at_another_level_are_not_training():
    """Twelve seeds, of which the three that are also trained longer happen to lie lower, at every length."""
    paper, result = a_study(np.random.default_rng(16), {"0.5": 0.4, "1": 1.0, "2": 0.4}, seeds=12)
    tables = [result["results"], *result["lengths"]["results"].values()]
    full = tables[0]["baseline"]
    for seed in ("0", "1", "2"):
        for case in full[seed].values():
            case["error"] -= 0.6
    found = check_all(paper, result)["C1"]
    (row,) = found["lengths"]
    assert found["verdict"] == REPRODUCED and not row["moving"] and not row["growing"]
    assert list(row["means"].values()) == pytest.approx([0.4, 0.4, 0.4], abs=0.1)
    assert not found["evidence"][0]["low"] <= row["means"]["2"], "the three seeds alone lie outside of the interval"


@pytest.mark.parametrize("gap, verdict", [(1.0, REPRODUCED), (-1.0, NOT_REPRODUCED)])
def test_an_effect_that_stays_is_decided(gap, verdict):
    paper, result = a_study(np.random.default_rng(15), {"0.5": 2 * gap, "1": gap, "2": gap})
    tables = result["results"].items()  # at double length the first three seeds of full length, to the last digit
    result["lengths"]["results"]["2"] = {n: {seed: by_seed[seed] for seed in "012"} for n, by_seed in tables}
    found = check_all(paper, result)["C1"]
    assert found["verdict"] == verdict and not found["lengths"][0]["moving"] and "reason" not in found


def test_the_other_side_of_the_margin_is_moving_too():
    """On par to 0.5, 0.4 worse at full and 0.6 worse at double length; noise widens the interval over both."""
    paper, result = a_study(np.random.default_rng(16), {"0.5": 0.0, "1": -0.4, "2": -0.6}, margin=-0.5)
    for table in result["results"]["baseline"].values():
        for number, row in enumerate(table.values()):
            row["error"] += 2.0 * (-1) ** number
    row = check_all(paper, result)["C1"]["lengths"][0]
    assert row["moving"] and check_all(paper, result)["C1"]["evidence"][0]["low"] < -0.6


def test_a_length_that_failed_gives_no_verdict():
    paper, result = a_study(np.random.default_rng(17), {"0.5": 1.0, "1": 1.0, "2": 1.0})
    del result["lengths"]["results"]["2"]["full"]
    found = check_all(paper, result)["C1"]
    assert found["verdict"] == INCONCLUSIVE and found["reason"] == "no length curve: failed: full at 2"


def test_a_dead_baseline_is_no_proof_at_any_length():
    paper, result = a_study(np.random.default_rng(18), {"0.5": 10.0, "1": 10.0, "2": 10.0})
    found = check_all(paper, result)["C1"]
    assert found["verdict"] == INCONCLUSIVE and "control C0" in found["reason"]
