"""Reproduce a paper: data, training, evaluation, claims, table. This is what `make reproduce` calls.

Everything lies in files under `runs/<slug>/<data set>-<profile>/`, so it can be stopped at any moment and
started again: what is up to date is skipped, what was interrupted goes on from its checkpoint, what is missing or
damaged is made again. In order of reading: `plan` (what is run), `runs` (how), `fingerprint` (what is up to date),
`steps` (in processes of their own), `outcome` (the result).
"""

import importlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ledger, machine
from benchmarks.checkout import need_checkout
from benchmarks.data import load_paper, make_standin, real_data, relative, say
from benchmarks.fingerprint import remove
from benchmarks.lock import locked
from benchmarks.outcome import make_result
from benchmarks.panel import draw_panel
from benchmarks.plan import Plan, limit_of, make_plan
from benchmarks.runs import Setup, run_all
from benchmarks.settings import name_of_data, parse_overrides
from benchmarks.steps import Steps
from shared.cli import run_main
from shared.errors import InputError


@dataclass
class Options:
    """Reproduce one paper, or all of them."""

    paper: str
    """slug of the paper, or all"""
    data: Path | None = None
    """folder of the real data set; without it, a stand-in is made"""
    name: str | None = None
    """name of the data set in the results; default: the folder's name, or standin"""
    profile: str = "cpu"
    """smoke (seconds, for tests), cpu (minutes, the headline), study (the evidence) or paper (the paper's recipe)"""
    seeds: int | None = None
    """number of training seeds of every variant; default: what paper.toml asks for"""
    variants: str | None = None
    """comma-separated variants, or all; default: what paper.toml asks for"""
    lengths: bool = True
    """in `study`, train the headline's variants at half and double length, too"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    set: tuple[str, ...] = ()
    """hyperparameters to change in every variant, as name=value; written into the result"""
    jobs: int = 1
    """papers at a time, for `all`"""
    parallel: int | None = None
    """trainings at a time; default: one per CPU core up to 4 (small networks gain little from a second
    thread), 1 on a GPU"""
    record: bool = False
    """put the result into the ledger and write the tables anew"""
    check: bool = False
    """compare with the ledger and fail where a mean is farther off than `tolerance`"""
    tolerance: float = 0.15
    """largest relative difference that `check` accepts: other processors round differently, and
    training amplifies it"""
    dry_run: bool = False
    """say what would be done, and stop"""


# --- one paper -------------------------------------------------------------------------------------------


def reproduce(slug: str, options: Options) -> tuple[dict, list[str]]:
    """All steps for one paper.

    Returns:
        the result, in the ledger's format, and a sentence for each step that failed.
    """
    paper = load_paper(slug, options.profile)
    folder = options.data.expanduser().resolve() if options.data else None
    standin, dataset = folder is None, name_of_data(options.name, folder)
    overrides = parse_overrides(options.set, importlib.import_module(f"papers.{slug}.train").Config)
    plan = make_plan(paper, options.profile, dataset, standin, options.variants, options.seeds, options.lengths)
    root = ledger.ROOT / "runs" / slug / f"{dataset}-{options.profile}"
    before = recorded_head(slug, dataset, options.profile)
    seconds = (before or recorded_head(slug, "standin", "cpu")).get("seconds_per_run", {})
    runs = len(plan.trainings())
    on_cpu = options.device == "cpu" or "CPU" in machine.describe_device(options.device)
    parallel = options.parallel or (min(machine.cores(), 4, runs) if on_cpu else 1)
    announce(paper, plan, dataset, options.profile, before.get("minutes"), root)
    if options.dry_run:
        return {}, []
    sentence = f"{relative(root)} is in use by another `make reproduce`: wait for it or stop it"
    with locked(root / ".lock", sentence):
        modules = [f"papers.{slug}.{name}" for name in ("train", "eval", "model")]
        steps = Steps(["torch", "torch._dynamo", *modules, "benchmarks.outcome", "benchmarks.panel"], parallel)
        data = make_standin(slug, options.profile, steps) if standin else real_data(folder)
        setup = Setup(slug, options.profile, root, data, options.device, overrides, plan, steps)
        used, failed = run_all(setup, parallel, seconds)
        failures = [f"{training.label}: {why}" for training, why in failed.items()]
        drawn = draw_panel(setup, paper)
        if drawn:
            failures.append(drawn)
        result = make_result(setup, paper, dataset, standin, parallel, used)
        if result["results"]:
            remove(root / "result.json")
            ledger.write_result(result, root / "result.json")
    return result, failures


def recorded_head(slug: str, dataset: str, profile: str) -> dict:
    """What the ledger says of a result, without its numbers; empty where there is none."""
    path = ledger.result_path(slug, dataset, profile)
    return ledger.read_head(path) if path.exists() else {}


def announce(paper: dict, plan: Plan, dataset: str, profile: str, minutes: float | None, root: Path) -> None:
    """Print what is going to be run."""
    say(f"\n{paper['name']}: {paper['title']}")
    say(f"           data set {dataset}, profile {profile}, {len(plan.trainings())} trainings")
    for number in sorted(set(plan.seeds.values()), reverse=True):
        names = [name for name, seeds in plan.seeds.items() if seeds == number]
        say(f"           {', '.join(names)}: {number} seed{'s' if number > 1 else ''}")
    if plan.curve:
        settings, names = ", ".join(plan.curve.settings), ", ".join(plan.curve.trained)
        say(f"           length curve of {plan.curve.claim}: {names} at half and double {settings}")
        say(f"           ({plan.curve.seeds} seeds)")
    elif profile == "study":
        say(f"           no length curve: {plan.no_curve}")
    if minutes:
        say(f"           about {minutes:.0f} minutes where it was last measured")
    say(f"           files: {relative(root)}")


# --- comparison with the ledger, recording ---------------------------------------------------------------


def differences(result: dict, recorded: dict, tolerance: float) -> list[str]:
    """Sentences on every mean that is farther from the ledger's than `tolerance`, relatively."""
    found = []
    for variant, by_seed in recorded["results"].items():
        if variant not in result["results"]:
            found.append(f"{variant}: in the ledger, but not in this run")
            continue
        columns = next(iter(next(iter(by_seed.values())).values()))
        for column in columns:
            then, now = (ledger.mean_of(r, variant, column) for r in (recorded, result))
            if (then is None) != (now is None):
                found.append(f"{variant} {column}: {now} against {then} in the ledger")
            elif then and abs(now[0] - then[0]) > tolerance * max(abs(then[0]), 1e-6):
                found.append(f"{variant} {column}: {now[0]:.4g} against {then[0]:.4g} in the ledger")
    return found


def over_limit(paper: dict, result: dict) -> str | None:
    """A sentence if a result took more processor time than its profile may; None if not, or if it was not measured."""
    limit, used = limit_of(paper, result["profile"]), result.get("processor_minutes")
    if limit is None or used is None or used <= limit:
        return None
    return (
        f"{paper['slug']}, {result['dataset']}, {result['profile']}: {used:.1f} processor minutes, and the limit is "
        f"{limit:g}: make the problem or the plan smaller"
    )


def main_one(slug: str, options: Options) -> bool:
    """One paper with its table; True if every step succeeded and, with `check`, agrees with the ledger."""
    from benchmarks import page, table

    result, failures = reproduce(slug, options)
    if options.dry_run:
        return True
    paper = ledger.load_paper(slug)
    if result["results"]:
        say("\n" + page.for_terminal(paper, result))
        limit = limit_of(paper, result["profile"])
        say(f"\n{result['processor_minutes']:.1f} processor minutes" + (f", of at most {limit:g}" if limit else ""))
    path = ledger.result_path(slug, result["dataset"], result["profile"])
    if options.check:
        if not path.exists():
            failures.append(f"nothing to compare with: {relative(path)} is not in the ledger")
        else:
            recorded = ledger.read_result(path)
            failures += differences(result, recorded, options.tolerance)
            for name, verdict in recorded["verdicts"].items():
                now = result["verdicts"].get(name, {}).get("verdict")
                if now != verdict["verdict"]:
                    say(f"note: {name} is {now} here and {verdict['verdict']} in the ledger")
            if not failures:
                say(f"agrees with the ledger: all means within {options.tolerance:.0%}")
    if options.record:
        too_long = over_limit(paper, result)
        if too_long:
            failures.append(f"not recorded: {too_long}")
    if options.record and not failures:
        ledger.write_result(result, path)
        picture = ledger.ROOT / "runs" / slug / f"{result['dataset']}-{result['profile']}" / "panel.png"
        if picture.is_file():
            shutil.copyfile(picture, path.with_suffix(".png"))
        table.write_all()
        say(f"recorded in {relative(path)}, and the tables written anew")
    for failure in failures:
        say(f"failed: {failure}")
    return not failures


def main_all(options: Options) -> bool:
    """Every paper, `jobs` at a time, each in a process of its own; a summary at the end.

    Raises:
        InputError: an option that speaks about one paper.
    """
    of_one = [name for name in ("data", "name", "variants", "set", "parallel") if getattr(options, name)]
    if of_one:
        raise InputError(f"--{of_one[0]} is for one paper: give its slug instead of --paper all")
    passed = [f"--{name.replace('_', '-')}" for name in ("record", "check", "dry_run") if getattr(options, name)]
    passed += ["--profile", options.profile, "--device", options.device]
    passed += [] if options.lengths else ["--no-lengths"]
    if options.seeds:
        passed += ["--seeds", str(options.seeds)]

    def one(slug: str) -> tuple[str, int]:
        command = [sys.executable, "-m", "benchmarks.reproduce", "--paper", slug, *passed]
        done = subprocess.run(command, cwd=ledger.ROOT, capture_output=options.jobs > 1, text=True, encoding="utf-8")
        if options.jobs > 1:
            say(done.stdout + done.stderr)
        return slug, done.returncode

    with ThreadPoolExecutor(options.jobs) as pool:
        codes = dict(pool.map(one, ledger.slugs()))
    for slug, code in codes.items():
        say(f"{slug:20s} {'done' if code == 0 else f'FAILED with exit code {code}'}")
    return not any(codes.values())


def main(argv: list[str] | None = None) -> None:
    import tyro

    def run() -> None:
        options = tyro.cli(Options, args=argv)
        need_checkout()
        if options.record and options.profile == "smoke":
            raise InputError("a smoke run can't be recorded: it shows that the code runs, nothing else")
        if options.record and not options.data and not (options.name or "standin").startswith("standin"):
            raise InputError("a stand-in is recorded under a name that begins with standin (NAME=..., --name)")
        ok = main_all(options) if options.paper == "all" else main_one(options.paper, options)
        if not ok:
            sys.exit(1)

    run_main(run)


if __name__ == "__main__":
    main()
