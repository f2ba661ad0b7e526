"""Check a paper's claims on per-case results: the statistics behind every verdict.

Every claim is turned into *contrasts*: weighted sums of variants on one metric, computed for each test
case and each seed separately (that is the pairing), and written so that the paper predicts a positive
value. One contrast of "A better than B" on an error is B - A. A contrast takes the seeds and cases that all
of its variants have.

A contrast is an array `(seeds, cases)`. Its mean has two sources of chance, which cases were drawn and
which seeds the networks were trained with. Both are kept, by the crossed two-way random-effects model

    d[s, c] = mean + seed[s] + case[c] + rest[s, c]

(Searle, Casella & McCulloch, *Variance Components*, 1992, ch. 4-5), see `half_width`. With two seeds
that disagree the interval is wide, as it should be. With one seed it is the ordinary paired t interval over
cases, which says nothing about chance in training: taken for a verdict it would be wrong in up to half of
all runs. So one seed gives no verdict, unless the claim says `deterministic = true` (no training in it).

Verdicts: *reproduced* if the whole 95 % interval is on the predicted side of zero, or of the claim's `margin`,
*not reproduced* if it is on the other side, *inconclusive* otherwise. A claim of several contrasts is reproduced if
all are, not reproduced if one is contradicted. No correction for several contrasts is needed for that: all must hold.
A claim that says `decidable = "why not"` is *not decidable here*, one whose variants (or itself) the profile leaves
out is *not run in this profile*; neither counts.

A claim that beats a baseline is cheap where the baseline does not work. `requires` of a claim names *controls*,
claims on the baseline alone: unless all of them are reproduced, a verdict becomes "inconclusive". So does "not
reproduced": where the networks do not even beat doing nothing, nothing was said against the paper either.

A difference may also be one of short training. Where a result has the headline's variants at half and double
length, too (profile `study`), its contrasts and those of other claims about no other variants are computed there as
well (controls apart: what they say is that a baseline works at all). If one has the other sign at double length, or is
outside of the interval at full length on the side of zero (of the `margin`), the verdict is "inconclusive: still moving
with training". An effect that grows further away from zero is said to grow, and its verdict stays.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
from scipy import stats

from benchmarks.ledger import (
    INCONCLUSIVE,
    NOT_DECIDABLE,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    claims_for,
    controls_of,
    curved,
    short,
    trains,
)

KINDS = ("order", "best", "trend", "contrast", "value", "equal")


@dataclass(frozen=True)
class Interval:
    """Mean of a contrast with its 95 % interval; the bounds are NaN where one value alone gives none."""

    mean: float
    low: float
    high: float
    seeds: int
    cases: int


def half_width(seed_square, case_square, rest_square, seeds: int, cases: int, confidence: float = 0.95):
    """Half the width of the interval of a mean, from the mean squares of the two-way layout (numbers or arrays).

    With the squares of seeds and cases not below that of the rest (a variance that is estimated below zero is none),

        variance = (MS_seed + MS_case - MS_rest) / (S C)
        quantile = (MS_seed t[S-1] + MS_case t[C-1]) / (MS_seed + MS_case)          (Cochran & Cox, 1950)
        half width = quantile √variance,

    and it is never less than Student's over the seeds' means alone or over the cases' means alone. So the degrees of
    freedom are never below min(S, C) - 1. Simulated coverage is 0.95 or more with 2 to 5 seeds and 2 to 50 cases,
    whichever part dominates; Satterthwaite's degrees of freedom, the usual choice, give from 0.88 to 1.00 there.
    """
    of_seeds, of_cases = (stats.t.ppf((1 + confidence) / 2, count - 1) for count in (seeds, cases))
    alone = np.maximum(of_seeds * np.sqrt(seed_square), of_cases * np.sqrt(case_square))
    seed_square, case_square = np.maximum(seed_square, rest_square), np.maximum(case_square, rest_square)
    both = seed_square + case_square
    quantile = (seed_square * of_seeds + case_square * of_cases) / np.where(both > 0, both, 1.0)
    return np.maximum(alone, quantile * np.sqrt(both - rest_square)) / math.sqrt(seeds * cases)


def crossed_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval of the mean of `values` `(seeds, cases)` under the two-way random-effects model, see `half_width`.

    With one seed or one case it is Student's over the others.

    Raises:
        ValueError: the array is not 2-D, is empty, or holds values that are not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"expected a non-empty array (seeds, cases), found shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a contrast holds values that are not finite")
    seeds, cases = values.shape
    mean = values.mean()
    if seeds == 1 or cases == 1:
        flat = values.ravel()
        if flat.size == 1:
            return Interval(float(mean), np.nan, np.nan, seeds, cases)
        half = stats.t.ppf((1 + confidence) / 2, flat.size - 1) * stats.sem(flat)
    else:
        seed_effect = values.mean(axis=1) - mean
        case_effect = values.mean(axis=0) - mean
        rest = values - mean - seed_effect[:, None] - case_effect[None, :]
        seed_square = cases * np.sum(seed_effect**2) / (seeds - 1)
        case_square = seeds * np.sum(case_effect**2) / (cases - 1)
        rest_square = np.sum(rest**2) / ((seeds - 1) * (cases - 1))
        half = half_width(seed_square, case_square, rest_square, seeds, cases, confidence)
    return Interval(float(mean), float(mean - half), float(mean + half), seeds, cases)


def side(interval: Interval, margin: float = 0.0) -> str:
    """Verdict on a contrast that the paper predicts to be above `margin`: "far better" is above a positive one,
    "on par" (not worse by more than that) above a negative one."""
    if np.isnan(interval.low):
        return INCONCLUSIVE
    if interval.low > margin:
        return REPRODUCED
    if interval.high < margin:
        return NOT_REPRODUCED
    return INCONCLUSIVE


def within(interval: Interval, low: float, high: float) -> str:
    """Verdict on a mean that the paper predicts to lie from `low` to `high`."""
    if low <= interval.low and interval.high <= high:
        return REPRODUCED
    if interval.high < low or interval.low > high:
        return NOT_REPRODUCED
    return INCONCLUSIVE


def combine(verdicts: list[str]) -> str:
    """All must hold; one contradiction is enough against."""
    if NOT_REPRODUCED in verdicts:
        return NOT_REPRODUCED
    return REPRODUCED if all(verdict == REPRODUCED for verdict in verdicts) else INCONCLUSIVE


def contrasts_of(claim: dict, better: str) -> list[tuple[str, dict[str, float]]]:
    """The contrasts of a claim, as (what is compared, weight of each variant).

    Args:
        claim: table `[[claim]]` of a paper.toml. By `kind`:
            order    `variants` from best to worst: each better than the next
            best     `variant` better than each of `than`
            trend    `variants` at the values `x`: the metric gets better as x grows (`direction =
                     "worse"`: worse); the contrast is the least-squares slope over x
            contrast `weights`, a table variant -> weight; `direction` "positive" or "negative"
            value    `variant` alone, whose mean is `value` up to `tolerance`
            equal    `variants`, two, whose difference is none up to `tolerance`
        better: "lower" or "higher", which values of the metric are good.
    """
    sign = {"lower": 1.0, "higher": -1.0}[better]
    kind = claim["kind"]
    if kind == "value":
        return [(f"{claim['variant']}", {claim["variant"]: 1.0})]
    if kind == "equal":
        first, second = claim["variants"]
        return [(f"{first} better than {second}", {second: sign, first: -sign})]
    if kind == "order":
        pairs = zip(claim["variants"], claim["variants"][1:])
        return [(f"{good} better than {bad}", {bad: sign, good: -sign}) for good, bad in pairs]
    if kind == "best":
        good = claim["variant"]
        return [(f"{good} better than {bad}", {bad: sign, good: -sign}) for bad in claim["than"]]
    if kind == "trend":
        x = np.asarray(claim["x"], dtype=float)
        slope = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
        towards = -sign if claim.get("direction", "better") == "better" else sign
        return [(f"slope over {claim['variants']}", dict(zip(claim["variants"], (towards * slope).tolist())))]
    if kind == "contrast":
        towards = {"positive": 1.0, "negative": -1.0}[claim["direction"]]
        name = " ".join(f"{weight:+g}·{variant}" for variant, weight in claim["weights"].items())
        return [(f"{name} is {claim['direction']}", {v: towards * float(w) for v, w in claim["weights"].items()})]
    raise ValueError(f"claim {claim.get('id')}: unknown kind '{kind}', expected one of {KINDS}")


def variants_of(claim: dict) -> list[str]:
    """Names of the variants that a claim needs, each once."""
    names = [name for _, weights in contrasts_of(claim, "lower") for name in weights]
    return list(dict.fromkeys(names))


def paired(
    results: dict, variants: list[str], metric: str, cases: str = "*", unit: str | None = None
) -> dict[str, np.ndarray]:
    """Arrays `(seeds, cases)` of one metric over the seeds and cases that all `variants` have.

    Args:
        results: variant -> seed -> case -> column -> value, as in the ledger.
        cases: pattern of the case names, as the shell has it: "tumour/*".
        unit: regular expression that is cut from the names; what is equal then is one case, and its mean counts. So
            a scan that is registered to two atlases is not taken for two scans.

    Raises:
        KeyError: a variant has no results.
        ValueError: the variants share no seed or no case, or a case has no such metric (a result made before it).
    """
    seeds = sorted(set.intersection(*(set(results[name]) for name in variants)), key=int)
    if not seeds:
        raise ValueError(f"the variants {variants} share no seed")
    tables = [results[name][seed] for name in variants for seed in seeds]
    shared = sorted(case for case in set.intersection(*map(set, tables)) if fnmatch(case, cases))
    if not shared:
        raise ValueError(f"the variants {variants} share no test case '{cases}'")
    if any(metric not in table[case] for table in tables for case in shared):
        raise ValueError(f"made before the metric {metric} was")
    groups: dict[str, list[str]] = {}
    for case in shared:
        groups.setdefault(re.sub(unit, "", case) if unit else case, []).append(case)

    def of(name: str, seed: str) -> list[float]:
        table = results[name][seed]
        return [np.array([table[case][metric] for case in group], dtype=float).mean() for group in groups.values()]

    return {name: np.array([of(name, seed) for seed in seeds]) for name in variants}


def row_of(claim: dict, what: str, weights: dict[str, float], results: dict) -> dict:
    """One contrast: what was compared, its mean, interval and half width, and its verdict, to 6 significant digits.

    Raises:
        ValueError: it can't be computed, and why.
    """
    arrays = paired(results, list(weights), claim["metric"], claim.get("cases", "*"), claim.get("unit"))
    interval = crossed_interval(sum(weight * arrays[name] for name, weight in weights.items()))
    row = {
        "compared": what,
        "mean": short(interval.mean),
        "low": None if np.isnan(interval.low) else short(interval.low),
        "high": None if np.isnan(interval.high) else short(interval.high),
        "half_width": None if np.isnan(interval.low) else short((interval.high - interval.low) / 2),
        "seeds": interval.seeds,
        "cases": interval.cases,
        "means": {name: short(float(array.mean())) for name, array in arrays.items()},
    }
    if claim["kind"] == "value":
        low, high = claim["value"] - claim["tolerance"], claim["value"] + claim["tolerance"]
        return {**row, "compared": f"{what} within {low:g} to {high:g}", "verdict": within(interval, low, high)}
    if claim["kind"] == "equal":
        tolerance = claim["tolerance"]
        row["compared"] = f"{' and '.join(claim['variants'])} equal to ±{tolerance:g}"
        return {**row, "verdict": within(interval, -tolerance, tolerance)}
    margin = claim.get("margin", 0.0)
    if margin:
        row["compared"] += f" by {margin:g}" if margin > 0 else f", or worse by at most {-margin:g}"
    return {**row, "verdict": side(interval, margin)}


def check(claim: dict, results: dict, better: str, planned: Collection[str] = ()) -> dict:
    """Verdict on one claim, whatever the others say.

    Args:
        claim: table `[[claim]]` of a paper.toml.
        results: variant -> seed -> case -> column -> value.
        better: "lower" or "higher".
        planned: variants that were to be run; one that is not among the results has failed.

    Returns:
        `verdict` and `evidence`: for each contrast what was compared, the mean, its interval and half width, the
        numbers of seeds and cases, the variants' means, and a verdict of its own; `reason` where there is one.
    """
    evidence, reason = [], None
    missing = [name for name in variants_of(claim) if name not in results]
    if missing:
        failed = [name for name in missing if name in planned]
        reason = f"failed: {', '.join(failed)}" if failed else f"not run: {', '.join(missing)}"
        verdict = INCONCLUSIVE if failed else NOT_RUN
    else:
        try:
            evidence = [row_of(claim, what, weights, results) for what, weights in contrasts_of(claim, better)]
            verdict = combine([row["verdict"] for row in evidence])
            if min(row["seeds"] for row in evidence) == 1 and not claim.get("deterministic", False):
                verdict, reason = INCONCLUSIVE, "one seed can't tell effect from chance"
        except ValueError as error:
            verdict, reason = INCONCLUSIVE, str(error)
    if "decidable" in claim:
        verdict, reason = NOT_DECIDABLE, claim["decidable"]
    return {"verdict": verdict, **({"reason": reason} if reason else {}), "evidence": evidence}


def with_lengths(paper: dict, dataset: str) -> list[dict]:
    """The claims that a length curve speaks about: the headline, those that `curves` of `[study]` names, and those that
    compare no other variants than these do.

    Not among them are controls, and claims about variants in which nothing is trained.
    """
    main = curved(paper, dataset)
    named, controls = [claim["id"] for claim in main], controls_of(paper)
    names = {name for claim in main for name in variants_of(claim)}

    def fits(claim: dict) -> bool:
        own = variants_of(claim)
        return claim["id"] not in controls and set(own) <= names and any(trains(paper, name) for name in own)

    return [claim for claim in claims_for(paper, dataset) if claim["id"] in named or fits(claim)]


def lengths_of(claim: dict, result: dict, better: str, evidence: list[dict]) -> list[dict]:
    """Each contrast of a claim at half, full and double length of training.

    Args:
        claim: one of `with_lengths`.
        result: with `lengths`, where each of the claim's variants is at half and at double length.
        better: "lower" or "higher".
        evidence: of the claim at full length, with all seeds.

    Returns:
        for each contrast what was compared, the number of seeds that all lengths share, the `means` at "0.5", "1" and
        "2" over those seeds, and whether it is `moving`: at double length it has the other sign than in `evidence`
        (is on the other side of the claim's margin), or lies outside of the interval there, towards zero (the margin;
        where a value or equality is claimed: it leaves or enters the range). It is `growing` if it lies outside on the
        far side. Double length means: where all seeds are at full length, plus what doubling changes in the shared
        ones, so that a few seeds at another level do not look like training.

    Raises:
        ValueError: it can't be computed, and why.
    """
    at = {**result["lengths"]["results"], "1": result["results"]}
    margin, signed = claim.get("margin", 0.0), claim["kind"] not in ("value", "equal")
    rows = []
    for (_, weights), full in zip(contrasts_of(claim, better), evidence):
        missing = [f"{name} at {length}" for length in ("0.5", "2") for name in weights if name not in at[length]]
        if missing:
            raise ValueError(f"failed: {', '.join(missing)}")
        tables = {length: {name: at[length][name] for name in weights} for length in ("0.5", "1", "2")}
        shared = set.intersection(*(set(by_seed) for table in tables.values() for by_seed in table.values()))
        seeds = sorted(shared, key=int)
        if not seeds:
            raise ValueError("half, full and double length share no seed")
        means = {}
        for length, table in tables.items():
            some = {name: {seed: by_seed[seed] for seed in seeds} for name, by_seed in table.items()}
            means[length] = row_of(claim, "", weights, some)["mean"]
        # What doubling changes is seen on the same seeds; the level is that of all seeds.
        double = full["mean"] + means["2"] - means["1"]
        outside = full["low"] is not None and not full["low"] <= double <= full["high"]
        if signed:
            growing = outside and (double - full["mean"]) * (full["mean"] - margin) > 0
            moving = (double - margin) * (full["mean"] - margin) < 0 or (outside and not growing)
        else:
            centre = claim["value"] if claim["kind"] == "value" else 0.0
            growing = False
            moving = (abs(double - centre) <= claim["tolerance"]) != (abs(full["mean"] - centre) <= claim["tolerance"])
        row = {"compared": full["compared"], "seeds": len(seeds), "means": means, "moving": moving}
        rows.append({**row, "growing": growing})
    return rows


def _still_moving(verdict: dict, claim: dict, result: dict, better: str) -> dict:
    """The verdict on a claim of `with_lengths`, with its length curve."""
    decided = verdict["verdict"] in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)
    if not verdict["evidence"] or not decided:
        return verdict
    try:
        rows = lengths_of(claim, result, better, verdict["evidence"])
    except ValueError as error:
        return {**verdict, "verdict": INCONCLUSIVE, "reason": f"no length curve: {error}"}
    verdict = {**verdict, "lengths": rows}
    moving = [row for row in rows if row["moving"]]
    if moving:
        numbers = "; ".join(
            f"{row['compared']} " + ", ".join(f"{row['means'][length]:+.3g}" for length in ("0.5", "1", "2"))
            for row in moving
        )
        verdict["verdict"] = INCONCLUSIVE
        verdict["reason"] = f"still moving with training: at half, full and double length {numbers}"
    return verdict


def check_all(paper: dict, result: dict) -> dict[str, dict]:
    """Verdicts on all claims of a paper that speak about a result's data set, with their controls applied.

    Args:
        paper: a paper.toml, as `ledger.load_paper` gives it.
        result: as in the ledger; of it `dataset`, `profile`, `seeds`, `results` and, where it has them, `lengths`.

    Returns:
        id of the claim -> what `check` says. Where there is a length curve, it is `lengths`; controls are marked by
        `control`. A claim that is decided while one of its controls (`requires`) is not reproduced becomes inconclusive
        and says why. A claim that the profile does not name is not run in it.
    """
    better = {metric["column"]: metric["better"] for metric in paper["metric"]}
    claims = claims_for(paper, result["dataset"])
    at_lengths = [claim["id"] for claim in with_lengths(paper, result["dataset"])] if "lengths" in result else []
    controls, planned = controls_of(paper), set(result["seeds"])
    alone = {}
    for claim in claims:
        way = better[claim["metric"]]
        verdict = check(claim, result["results"], way, planned)
        alone[claim["id"]] = _still_moving(verdict, claim, result, way) if claim["id"] in at_lengths else verdict
    chosen = paper.get("profiles", {}).get(result["profile"], {}).get("claims")
    if chosen is not None:
        chosen = {*chosen, *(name for claim in claims if claim["id"] in chosen for name in claim.get("requires", []))}
    verdicts = {}
    for claim in claims:
        verdict = alone[claim["id"]]
        found = {name: alone.get(name, {"verdict": "not checked"})["verdict"] for name in claim.get("requires", [])}
        failed = [f"{name} is {word}" for name, word in found.items() if word != REPRODUCED]
        if failed and verdict["verdict"] in (REPRODUCED, NOT_REPRODUCED):
            word = "holds" if verdict["verdict"] == REPRODUCED else "fails"
            reason = f"{word}, but says little: its control {', '.join(failed)}"
            verdict = {**verdict, "verdict": INCONCLUSIVE, "reason": reason}
        if chosen is not None and claim["id"] not in chosen and verdict["verdict"] != NOT_DECIDABLE:
            reason = f"the profile {result['profile']} leaves it out"
            verdict = {"verdict": NOT_RUN, "reason": reason, "evidence": []}
        verdicts[claim["id"]] = {**verdict, **({"control": True} if claim["id"] in controls else {})}
    return verdicts
