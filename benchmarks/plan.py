"""What a reproduction runs: variants, seeds, lengths of training, and in which order.

In the profile `study` the variants of the headline claim (and of those that `curves` names) are also trained at half
and double length (the *length curve*): whether a difference is an effect, or only short training, shows there.
"""

import dataclasses
import math
from dataclasses import dataclass

from benchmarks import ledger
from benchmarks.claims import variants_of
from shared.errors import InputError

FACTORS = (0.5, 2.0)
"""lengths of training beside the full one, in `study`"""
LIMITS = {"cpu": 10.0, "study": 60.0}
"""processor minutes that a recorded result may have taken"""
LONGEST = 120.0
"""processor minutes that `limit` of a profile may allow, with the pilot's figures in `pilot`"""


@dataclass(frozen=True)
class Training:
    """One training with its evaluation."""

    variant: str
    seed: int
    length: float = 1.0
    """factor on the length of training"""

    @property
    def folder(self) -> str:
        """Where it lies under the folder of the run."""
        return f"{folder_of(self.variant, self.length)}/seed{self.seed}"

    @property
    def label(self) -> str:
        return f"{folder_of(self.variant, self.length)}, seed {self.seed}"


@dataclass(frozen=True)
class LengthCurve:
    """The part of a plan that shows what longer training changes."""

    claim: str
    """ids of the headline claim and of those of `curves`"""
    settings: tuple[str, ...]
    """names of the settings that are the length of training"""
    seeds: int
    trained: tuple[str, ...]
    """variants of the claims that are trained again at other lengths"""
    untrained: tuple[str, ...]
    """variants of the claims in which nothing is trained: their numbers are the same at every length"""


@dataclass(frozen=True)
class Plan:
    """All that is run for one paper."""

    seeds: dict[str, int]
    """variant -> number of seeds; a variant that another needs comes before it"""
    needs: dict[str, str | None]
    """variant -> the variant whose checkpoint it starts from"""
    curve: LengthCurve | None = None
    no_curve: str = ""
    """why `study` is without one"""

    def trainings(self) -> list[Training]:
        """Each once, what others need before them."""
        found = [Training(name, seed) for name, seeds in self.seeds.items() for seed in range(seeds)]
        if self.curve:
            names = with_needed(list(self.curve.trained), self.needs)
            found += [Training(n, s, f) for f in FACTORS for n in names for s in range(self.curve.seeds)]
        return found

    def needed_by(self, training: Training) -> Training | None:
        """The training that one starts from: of the same seed and length."""
        name = self.needs[training.variant]
        return dataclasses.replace(training, variant=name) if name else None


def folder_of(variant: str, length: float) -> str:
    """
    >>> folder_of("full", 1.0), folder_of("full", 0.5), folder_of("full", 2.0)
    ('full', 'full@0.5', 'full@2')
    """
    return variant if length == 1 else f"{variant}@{length:g}"


def with_needed(names: list[str], needs: dict[str, str | None]) -> list[str]:
    """The names and all that they need, which comes before them.

    >>> with_needed(["full", "head"], {"full": "pre", "head": "pre", "pre": None})
    ['pre', 'full', 'head']
    """
    ordered: list[str] = []

    def add(name: str) -> None:
        if needs[name]:
            add(needs[name])
        if name not in ordered:
            ordered.append(name)

    for name in names:
        add(name)
    return ordered


def make_plan(
    paper: dict, profile: str, dataset: str, standin: bool, variants: str | None, seeds: int | None, lengths: bool
) -> Plan:
    """What to run.

    Args:
        paper: a paper.toml.
        profile: one of its profiles.
        dataset: name of the data set in the results.
        standin: whether it is the stand-in.
        variants: chosen by the user: comma-separated names, or all; None: the profile's.
        seeds: chosen by the user for all variants; None: what paper.toml asks for.
        lengths: whether a length curve is wanted.

    Raises:
        InputError: unknown variants, or a number of seeds below one.
    """
    names = [variant["name"] for variant in paper["variant"]]
    needs = {variant["name"]: variant.get("needs") for variant in paper["variant"]}
    if variants == "all":
        chosen = names
    elif variants:
        chosen = [name.strip() for name in variants.split(",")]
    else:
        chosen = paper["profiles"][profile].get("variants", names)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise InputError(f"{paper['slug']} has no variant {', '.join(unknown)}: choose from {', '.join(names)}")
    if seeds is not None and seeds < 1:
        raise InputError(f"{seeds} seeds: expected at least 1")
    numbers = seeds_of(paper, profile, standin, with_needed(chosen, needs), needs, seeds)
    curve, why_not = None, ""
    if profile == "study":
        curve, why_not = length_curve(paper, dataset, numbers, needs, seeds, lengths)
    return Plan(numbers, needs, curve, why_not)


def seeds_of(
    paper: dict, profile: str, standin: bool, names: list[str], needs: dict[str, str | None], chosen: int | None
) -> dict[str, int]:
    """Variant -> number of seeds; a variant that others need has at least as many as they have.

    On real data `real` of `[study]` replaces the numbers of the profile `study`.
    """
    table = paper["profiles"][profile]
    if profile == "study" and not standin:
        table = paper.get("study", {}).get("real", table)
    default, special = table.get("seeds", 1), table.get("seeds_of", {})
    numbers = {name: chosen or special.get(name, default) for name in names}
    for name in reversed(names):
        if needs[name]:
            numbers[needs[name]] = max(numbers[needs[name]], numbers[name])
    return numbers


def length_curve(
    paper: dict, dataset: str, seeds: dict[str, int], needs: dict[str, str | None], chosen: int | None, wanted: bool
) -> tuple[LengthCurve | None, str]:
    """The length curve of the headline claim, or None and the reason why there is none.

    The claims of `curves` of `[study]` have one, too, where the run has all their variants.
    """
    study = paper.get("study")
    if not wanted:
        return None, "left out, as was asked for"
    if study is None or "length" not in study:
        return None, "paper.toml has no [study] with a length"
    claims = ledger.curved(paper, dataset)
    if not claims:
        return None, f"no headline claim speaks about {dataset}"
    claim = claims[0]
    order = [variant["name"] for variant in paper["variant"]]
    missing = [name for name in order if name in variants_of(claim) and name not in seeds]
    if missing:
        return None, f"{claim['id']} compares {', '.join(missing)}, which this run leaves out"
    claims = [one for one in claims if all(name in seeds for name in variants_of(one))]
    compared = {name for one in claims for name in variants_of(one)}
    names = [name for name in order if name in compared]
    trained = tuple(name for name in names if ledger.trains(paper, name))
    if not trained:
        return None, f"nothing is trained for {claim['id']}"
    settings = study["length"] if isinstance(study["length"], list) else [study["length"]]
    fewest = min(seeds[name] for name in with_needed(names, needs))
    number = min(chosen or study.get("seeds", 3), fewest)
    untrained = tuple(name for name in names if name not in trained)
    return LengthCurve(", ".join(one["id"] for one in claims), tuple(settings), number, trained, untrained), ""


def scaled(config, settings: tuple[str, ...], factor: float):
    """A configuration whose training is `factor` times as long.

    Numbers and tuples of numbers are scaled, whole ones to whole ones, and never below 1; 0 and None, which mean that
    something else decides, stay.

    Raises:
        ValueError: a setting that the configuration lacks, or nothing in it to scale.
    """
    known = {field.name for field in dataclasses.fields(config)}
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(f"the length of training is given by {', '.join(unknown)}, which is no setting")
    now = {name: getattr(config, name) for name in settings}
    if not any(_total(value) for value in now.values()):
        raise ValueError(f"variant {config.variant} has no length in {', '.join(settings)}")
    return dataclasses.replace(config, **{name: _times(value, factor) for name, value in now.items()})


def _total(value) -> float:
    """Sum of a number or a tuple of numbers; None is 0."""
    return sum(value) if isinstance(value, tuple | list) else value or 0


def _times(value, factor: float):
    """
    >>> _times(300, 0.5), _times((5, 1, 0), 0.5), _times(1.5, 2.0), _times(None, 2.0)
    (150, (3, 1, 0), 3.0, None)
    """
    if value is None or value == 0:
        return value
    if isinstance(value, tuple | list):
        return tuple(_times(part, factor) for part in value)
    if isinstance(value, int):
        return max(1, math.floor(value * factor + 0.5))
    return max(min(value, 1.0), value * factor)


def in_order(plan: Plan, seconds: dict[str, float]) -> list[Training]:
    """All trainings, so that no core idles at the end: those first that the longest work begins with.

    Args:
        plan: what is to be run.
        seconds: variant -> duration of one training at full length in an earlier result. Those without come first.

    >>> needs = {"initial": None, "random": None, "full": None, "nio": "full"}
    >>> plan = Plan(dict.fromkeys(needs, 1), needs)
    >>> [item.variant for item in in_order(plan, {"initial": 1.0, "random": 50.0, "full": 40.0, "nio": 30.0})]
    ['full', 'random', 'nio', 'initial']
    """
    everything = plan.trainings()
    longest = {item: seconds.get(item.variant, 1e6) * item.length for item in everything}
    for item in reversed(everything):  # what waits comes after what it waits for
        needed = plan.needed_by(item)
        if needed:
            own = seconds.get(needed.variant, 1e6) * needed.length
            longest[needed] = max(longest[needed], own + longest[item])
    return sorted(everything, key=lambda item: -longest[item])


# --- how long it may take --------------------------------------------------------------------------------


def limit_of(paper: dict, profile: str) -> float | None:
    """Processor minutes that a recorded result may have taken; None: as many as it likes."""
    if profile not in LIMITS:
        return None
    return paper["profiles"].get(profile, {}).get("limit", LIMITS[profile])


def problems(paper: dict) -> list[str]:
    """What is wrong with the profiles of a paper.toml."""
    found = []
    names = {variant["name"] for variant in paper["variant"]}
    for profile, table in paper["profiles"].items():
        unknown = sorted({*table.get("variants", []), *table.get("seeds_of", {})} - names)
        if unknown:
            found.append(f"profile {profile} names variants that are not there: {', '.join(unknown)}")
        limit = table.get("limit", 0)
        if limit > LIMITS.get(profile, math.inf) and not table.get("pilot"):
            found.append(f"profile {profile} has a limit of {limit:g} minutes and no pilot that shows the need")
        if limit > LONGEST or (limit and profile != "study"):
            found.append(f"profile {profile}: limit may be at most {LONGEST:g} minutes, in study alone")
    return found
