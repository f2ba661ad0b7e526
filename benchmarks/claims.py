"""Check a paper's claims on per-case results: the statistics behind every verdict.

Every claim is turned into *contrasts*: weighted sums of variants on one metric, computed for each test
case and each seed separately (that is the pairing), and written so that the paper predicts a positive
value. One contrast of "A better than B" on an error is B - A.

A contrast is an array `(seeds, cases)`. Its mean has two sources of chance, which cases were drawn and
which seeds the networks were trained with. Both are kept, by the crossed two-way random-effects model

    d[s, c] = mean + seed[s] + case[c] + rest[s, c]

whose mean has the variance (MS_seed + MS_case - MS_rest) / (S C), with Satterthwaite's degrees of freedom
(Searle, Casella & McCulloch, *Variance Components*, 1992, ch. 4-5). The interval is Student's. With two
seeds that disagree it is wide, as it should be. With one seed it is the ordinary paired t interval over
cases, which says nothing about chance in training: taken for a verdict it would be wrong in up to half of
all runs. So one seed gives no verdict, unless the claim says `deterministic = true` (no training in it).

Verdicts: *reproduced* if the whole 95 % interval is on the predicted side of zero, *not reproduced* if it
is on the other side, *inconclusive* otherwise. A claim of several contrasts is reproduced if all are, not
reproduced if one is contradicted. No correction for several contrasts is needed for that: all must hold.

A claim that beats a baseline is cheap where the baseline does not work. `requires` of a claim names *controls*,
claims on the baseline alone: unless all of them are reproduced, "reproduced" becomes "inconclusive".
"""

from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
from scipy import stats

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
KINDS = ("order", "best", "trend", "contrast", "value")


@dataclass(frozen=True)
class Interval:
    """Mean of a contrast with its 95 % interval; the bounds are NaN where one value alone gives none."""

    mean: float
    low: float
    high: float
    seeds: int
    cases: int


def crossed_interval(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """Interval of the mean of `values` `(seeds, cases)` under the two-way random-effects model above.

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
        error, freedom = stats.sem(flat), flat.size - 1
    else:
        seed_effect = values.mean(axis=1) - mean
        case_effect = values.mean(axis=0) - mean
        rest = values - mean - seed_effect[:, None] - case_effect[None, :]
        mean_squares = np.array(
            [
                cases * np.sum(seed_effect**2) / (seeds - 1),
                seeds * np.sum(case_effect**2) / (cases - 1),
                np.sum(rest**2) / ((seeds - 1) * (cases - 1)),
            ]
        )
        # Where the rest exceeds a factor's mean square, that factor's variance is estimated as none.
        seed_part, case_part, rest_part = mean_squares
        seed_part, case_part = max(seed_part, rest_part), max(case_part, rest_part)
        total = seed_part + case_part - rest_part
        degrees = np.array([seeds - 1, cases - 1, (seeds - 1) * (cases - 1)])
        parts = np.array([seed_part, case_part, -rest_part])
        error = np.sqrt(total / (seeds * cases))
        freedom = total**2 / np.sum(parts**2 / degrees) if total > 0 else 1.0
    half = stats.t.ppf((1 + confidence) / 2, freedom) * error if error > 0 else 0.0
    return Interval(float(mean), float(mean - half), float(mean + half), seeds, cases)


def side(interval: Interval) -> str:
    """Verdict on a contrast that the paper predicts to be positive."""
    if np.isnan(interval.low):
        return INCONCLUSIVE
    if interval.low > 0:
        return REPRODUCED
    if interval.high < 0:
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
        better: "lower" or "higher", which values of the metric are good.
    """
    sign = {"lower": 1.0, "higher": -1.0}[better]
    kind = claim["kind"]
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
    if claim["kind"] == "value":
        return [claim["variant"]]
    names = [name for _, weights in contrasts_of(claim, "lower") for name in weights]
    return list(dict.fromkeys(names))


def claims_for(paper: dict, dataset: str) -> list[dict]:
    """The claims that speak about a data set: those without `datasets`, or that name it."""
    return [
        claim for claim in paper["claim"] if any(fnmatch(dataset, pattern) for pattern in claim.get("datasets", ["*"]))
    ]


def paired(results: dict, variants: list[str], metric: str, cases: str = "*") -> dict[str, np.ndarray]:
    """Arrays `(seeds, cases)` of one metric over the seeds and cases that all `variants` have.

    Args:
        results: variant -> seed -> case -> column -> value, as in the ledger.
        cases: pattern of the case names, as the shell has it: "tumour/*".

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
    return {
        name: np.array([[results[name][seed][case][metric] for case in shared] for seed in seeds], dtype=float)
        for name in variants
    }


def check(claim: dict, results: dict, better: str) -> dict:
    """Verdict on one claim.

    Returns:
        `verdict` and `evidence`: for each contrast what was compared, the mean, its interval, the numbers
        of seeds and cases, and a verdict of its own; or `reason` where it could not be computed.
    """
    variants = variants_of(claim)
    missing = [name for name in variants if name not in results]
    if missing:
        return {"verdict": INCONCLUSIVE, "reason": f"not run: {', '.join(missing)}", "evidence": []}
    try:
        arrays = paired(results, variants, claim["metric"], claim.get("cases", "*"))
        if claim["kind"] == "value":
            interval = crossed_interval(arrays[claim["variant"]])
            low, high = claim["value"] - claim["tolerance"], claim["value"] + claim["tolerance"]
            inside = low <= interval.low and interval.high <= high
            outside = interval.high < low or interval.low > high
            verdict = REPRODUCED if inside else NOT_REPRODUCED if outside else INCONCLUSIVE
            rows = [(f"{claim['variant']} within {low:g} to {high:g}", interval, verdict)]
        else:
            rows = []
            for what, weights in contrasts_of(claim, better):
                interval = crossed_interval(sum(weight * arrays[name] for name, weight in weights.items()))
                rows.append((what, interval, side(interval)))
    except ValueError as error:
        return {"verdict": INCONCLUSIVE, "reason": str(error), "evidence": []}
    evidence = [
        {
            "compared": what,
            "mean": interval.mean,
            "low": None if np.isnan(interval.low) else interval.low,
            "high": None if np.isnan(interval.high) else interval.high,
            "seeds": interval.seeds,
            "cases": interval.cases,
            "verdict": verdict,
        }
        for what, interval, verdict in rows
    ]
    if rows[0][1].seeds == 1 and not claim.get("deterministic", False):
        return {
            "verdict": INCONCLUSIVE,
            "reason": "one seed can't tell effect from chance",
            "evidence": evidence,
        }
    return {"verdict": combine([row[2] for row in rows]), "evidence": evidence}


def check_all(paper: dict, dataset: str, results: dict) -> dict[str, dict]:
    """Verdicts on all claims of a paper that speak about a data set, with their controls applied.

    Args:
        paper: a paper.toml, as `ledger.load_paper` gives it.
        dataset: name of the data set in the ledger.
        results: variant -> seed -> case -> column -> value.

    Returns:
        id of the claim -> what `check` says. A claim that is reproduced while one of its controls (`requires`) is not
        becomes inconclusive and says why; other verdicts stay.
    """
    better = {metric["column"]: metric["better"] for metric in paper["metric"]}
    claims = claims_for(paper, dataset)
    alone = {claim["id"]: check(claim, results, better[claim["metric"]]) for claim in claims}
    verdicts = {}
    for claim in claims:
        verdict = alone[claim["id"]]
        controls = {name: alone.get(name, {"verdict": "not checked"})["verdict"] for name in claim.get("requires", [])}
        failed = [f"{name} is {found}" for name, found in controls.items() if found != REPRODUCED]
        if failed and verdict["verdict"] == REPRODUCED:
            reason = f"holds, but says little: its control {', '.join(failed)}"
            verdict = {"verdict": INCONCLUSIVE, "reason": reason, "evidence": verdict["evidence"]}
        verdicts[claim["id"]] = verdict
    return verdicts
