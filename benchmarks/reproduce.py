"""Reproduce a paper: data, training, evaluation, claims, table. This is what `make reproduce` calls.

Everything lies in files under `runs/<slug>/<data set>-<profile>/`, so it can be stopped at any moment and
started again: what is up to date is skipped, what was interrupted goes on from its checkpoint. Each step
runs in a process of its own, so that one that fails does not take the others with it.
"""

import fcntl
import hashlib
import importlib
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ledger
from shared.cli import config_to_dict, configure, run_main
from shared.errors import InputError

NOT_IN_DIGEST = ("data", "out", "device", "workers", "resume", "checkpoint_every", "init")


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
    """smoke, cpu or paper"""
    seeds: int | None = None
    """number of training seeds; default: what paper.toml asks for"""
    variants: str | None = None
    """comma-separated variants, or all; default: what paper.toml asks for"""
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


# --- steps, each in a process of its own -----------------------------------------------------------------


def _die_with_parent() -> None:
    """Stop (with a checkpoint) when the runner is gone, however it went."""
    sentinel = multiprocessing.parent_process().sentinel

    def wait() -> None:
        multiprocessing.connection.wait([sentinel])
        os.kill(os.getpid(), 15)

    threading.Thread(target=wait, daemon=True).start()


def _child(module: str, function: str, arguments: dict, report: Path, threads: int, row: int) -> None:
    """Import `module`, call `function(**arguments)`, write seconds and peak memory to `report`."""
    _die_with_parent()
    os.environ["PROGRESS_ROW"] = str(row)

    def call() -> None:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        start = time.perf_counter()
        getattr(importlib.import_module(module), function)(**arguments)
        seconds = time.perf_counter() - start
        import resource

        used = {"seconds": seconds, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
            used["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
        report.write_text(json.dumps(used), "utf-8")

    run_main(call)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Steps:
    """Runs functions in fresh processes that have torch and the paper imported already (a fork server).

    `run` may be called from several threads: `parallel` of them share the cores.
    """

    def __init__(self, preload: list[str], parallel: int = 1):
        self.threads = max(1, cores() // parallel)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ledger.ROOT), os.environ.get("PYTHONPATH", "")])
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(preload)

    def run(self, module: str, function: str, arguments: dict, folder: Path, row: int = 0) -> dict:
        """Returns seconds and memory of the step; its progress bar is in line `row`.

        Raises:
            InputError: the step could not use its input (its own sentence was printed).
            RuntimeError: the step failed.
            KeyboardInterrupt: the step was interrupted and has written its checkpoint.
        """
        folder.mkdir(parents=True, exist_ok=True)
        report = folder / f".{function}.json"
        report.unlink(missing_ok=True)
        details = (module, function, arguments, report, self.threads, row)
        process = self.context.Process(target=_child, args=details)
        process.start()
        try:
            process.join()
        except KeyboardInterrupt:
            process.join()  # Ctrl-C reached the step as well: let it write its checkpoint
            raise
        if process.exitcode == 0:
            return json.loads(report.read_text("utf-8"))
        if process.exitcode in (130, -15, -2):
            raise KeyboardInterrupt
        if process.exitcode == 2:
            raise InputError(f"{module}.{function} could not use its input")
        raise RuntimeError(f"{module}.{function} ended with exit code {process.exitcode}")


# --- what is up to date ----------------------------------------------------------------------------------


def fingerprint_of_data(data: Path) -> str:
    """Digest of the names, sizes and modification times of all files of a data set."""
    digest = hashlib.sha256()
    for path in sorted(Path(data).rglob("*")):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.relative_to(data)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def digest_of_step(slug: str, config, data_fingerprint: str, with_evaluation: bool) -> str:
    """Digest of all that the outcome of a training (and its evaluation) depends on."""
    files = [path for path in ledger.paper_files(slug) if with_evaluation or path.name != "eval.py"]
    files += [
        ledger.ROOT / "shared" / f"{name}.py"
        for name in "gpu distributed sampling nifti nifti_header resample dicom metrics similarity surfaces".split()
    ]
    settings = {key: value for key, value in config_to_dict(config).items() if key not in NOT_IN_DIGEST}
    parts = [ledger.digest_of_code(files), json.dumps(settings, sort_keys=True), data_fingerprint]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _marker(path: Path) -> dict:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


# --- one paper -------------------------------------------------------------------------------------------


def make_standin(slug: str, profile: str, steps: Steps) -> Path:
    """Generate the stand-in of the profile's size under `data/`, unless it is there and up to date."""
    folder = ledger.ROOT / "data" / slug / f"standin-{profile}"
    marker = folder.parent / f".standin-{profile}.json"
    digest = ledger.digest_of_code(ledger.standin_files(slug) + ledger.paper_files(slug))
    if folder.is_dir() and _marker(marker).get("digest") == digest:
        say(f"data       {relative(folder)} is up to date")
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    marker.unlink(missing_ok=True)
    for left in folder.parent.glob(f".{folder.name}[.-]*"):  # by one that was killed
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    say(f"data       making the stand-in {relative(folder)} ...")
    arguments = {"out": folder, "size": profile, "seed": 0}
    used = steps.run(f"benchmarks.standins.{slug}", "generate", arguments, folder.parent)
    marker.write_text(json.dumps({"digest": digest, **used}), "utf-8")
    say(f"data       made in {used['seconds']:.0f} s")
    return folder


def say(text: str) -> None:
    print(text, flush=True)


def relative(path: Path) -> str:
    path = Path(path)
    return str(path.relative_to(ledger.ROOT)) if path.is_relative_to(ledger.ROOT) else str(path)


def parse_overrides(pairs: tuple[str, ...], config_class: type) -> dict:
    """`name=value` pairs as a dictionary; values are read as JSON where that is possible.

    Raises:
        InputError: a pair without '=', or a hyperparameter that the paper does not have.
    """
    import dataclasses

    known = {field.name for field in dataclasses.fields(config_class)}
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in known:
            raise InputError(f"--set {pair}: expected name=value with a name out of {', '.join(sorted(known))}")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def chosen_variants(paper: dict, options: Options) -> list[str]:
    """Names of the variants to run, those that others need before those."""
    names = [variant["name"] for variant in paper["variant"]]
    if options.variants == "all":
        chosen = names
    elif options.variants:
        chosen = options.variants.split(",")
    else:
        chosen = paper["profiles"][options.profile].get("variants", names)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise InputError(f"{paper['slug']} has no variant {', '.join(unknown)}: choose from {', '.join(names)}")
    needs = {variant["name"]: variant.get("needs") for variant in paper["variant"]}
    ordered: list[str] = []

    def add(name: str) -> None:
        if needs[name]:
            add(needs[name])
        if name not in ordered:
            ordered.append(name)

    for name in chosen:
        add(name)
    return ordered


def in_order(
    variants: list[str], needs: dict[str, str | None], seeds: int, seconds: dict[str, float]
) -> list[tuple[int, str]]:
    """(seed, variant) of all runs, so that no core idles: of all seeds, first what others wait for, last what waits.

    Among equals the longest first, by the `seconds` of an earlier result; those without come before all others.

    >>> needs = {"initial": None, "random": None, "nio": "full", "full": None}
    >>> in_order(["initial", "random", "nio", "full"], needs, 1, {"initial": 1.0, "random": 50.0})
    [(0, 'full'), (0, 'random'), (0, 'initial'), (0, 'nio')]
    """
    needed = set(needs.values())

    def rank(name: str) -> tuple[int, bool, float]:
        waits_for = 1 + rank(needs[name])[0] if needs[name] else 0
        return waits_for, name not in needed, -seconds.get(name, math.inf)

    return [(seed, name) for name in sorted(variants, key=rank) for seed in range(seeds)]


def read_metrics(path: Path) -> dict[str, dict[str, float | None]]:
    """case -> column -> value of a metrics.csv, to 6 significant digits; not finite values become None."""
    import csv

    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = {}
    for row in rows:
        case = row.pop("case")
        values = {key: float(value) if value else math.nan for key, value in row.items()}
        table[case] = {key: float(f"{value:.6g}") if math.isfinite(value) else None for key, value in values.items()}
    return table


def describe_device(device: str) -> str:
    """The processor or GPU that a run with `--device device` uses, in words."""
    if device != "cpu":
        try:
            names = subprocess.run(
                ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                encoding="utf-8",
            ).stdout.split("\n")
            if names[0].strip():
                return names[0].strip()
        except OSError:
            pass
    return f"{cores()} CPU cores"


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("torch", "numpy", "scipy", "scikit-image")},
    }


def reproduce(slug: str, options: Options) -> tuple[dict, list[str]]:
    """All steps for one paper.

    Returns:
        the result, in the ledger's format, and a sentence for each step that failed.
    """
    if slug not in ledger.slugs():
        raise InputError(f"there is no paper '{slug}': `make list` shows all")
    paper = ledger.load_paper(slug)
    if options.profile not in paper["profiles"]:
        raise InputError(f"there is no profile '{options.profile}': choose one of {', '.join(paper['profiles'])}")
    plan = paper["profiles"][options.profile]
    train_module = importlib.import_module(f"papers.{slug}.train")
    overrides = parse_overrides(options.set, train_module.Config)
    variants = chosen_variants(paper, options)
    seeds = options.seeds or plan.get("seeds", 1)
    standin = options.data is None
    dataset = options.name or ("standin" if standin else options.data.resolve().name)
    root = ledger.ROOT / "runs" / slug / f"{dataset}-{options.profile}"

    minutes, seconds = plan.get("minutes"), {}
    recorded = ledger.result_path(slug, dataset, options.profile)
    if recorded.exists():
        before = json.loads(recorded.read_text("utf-8"))
        minutes, seconds = before["minutes"], before["seconds_per_run"]
    say(f"\n{paper['name']}: {paper['title']}")
    say(f"           data set {dataset}, profile {options.profile}, {len(variants)} variants x {seeds} seeds")
    say(f"           variants: {', '.join(variants)}")
    say(f"           about {minutes:.0f} minutes where it was last measured" if minutes else "")
    say(f"           files: {relative(root)}")
    if options.dry_run:
        return {}, []

    root.mkdir(parents=True, exist_ok=True)
    lock = (root / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(f"{relative(root)} is in use by another `make reproduce`: wait for it or stop it") from error

    on_cpu = options.device == "cpu" or "CPU" in describe_device(options.device)
    parallel = options.parallel or (min(cores(), 4, len(variants) * seeds) if on_cpu else 1)
    steps = Steps(
        ["torch", "torch._dynamo", f"papers.{slug}.train", f"papers.{slug}.eval", f"papers.{slug}.model"], parallel
    )
    data = make_standin(slug, options.profile, steps) if standin else options.data
    if not data.is_dir():
        raise InputError(f"{data}: there is no such folder; DATA must be the folder of the data set")
    fingerprint = fingerprint_of_data(data)

    needs = {variant["name"]: variant.get("needs") for variant in paper["variant"]}
    failures: list[str] = []
    measured: dict[tuple[int, str], dict] = {}
    runs = in_order(variants, needs, seeds, seconds)
    with ThreadPoolExecutor(parallel) as pool:
        tasks: dict[tuple[int, str], Future] = {}
        free_rows = list(range(parallel))

        def work(number: int, seed: int, name: str) -> dict:
            label = f"[{number:2d}/{len(runs)}]    {name}, seed {seed}"
            folder = root / name / f"seed{seed}"
            needed = None
            if needs[name]:
                tasks[seed, needs[name]].exception()  # wait for it; whether it succeeded shows in its files
                needed = root / needs[name] / f"seed{seed}" / "checkpoint.pt"
            settings = {"data": data, "out": folder, "seed": seed, "device": options.device, "init": needed}
            modules = (train_module.Config, train_module.PROFILES, train_module.VARIANTS)
            config = configure(*modules, options.profile, name, **{**settings, **overrides})
            row = free_rows.pop()
            try:
                return _train_and_evaluate(slug, config, fingerprint, needed, steps, label, row)
            finally:
                free_rows.append(row)

        for number, (seed, name) in enumerate(runs, 1):
            tasks[seed, name] = pool.submit(work, number, seed, name)
        try:
            for (seed, name), task in tasks.items():
                try:
                    measured[seed, name] = task.result()
                except (RuntimeError, InputError) as error:
                    failures.append(f"{name}, seed {seed}: {error}")
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)  # what runs writes its checkpoint first
            raise
    durations: dict[str, list[float]] = {}
    memory = {"memory_mb": 0.0}
    results: dict[str, dict] = {}
    for (seed, name), used in measured.items():
        durations.setdefault(name, []).append(used["seconds"])
        for key in ("memory_mb", "gpu_memory_mb"):
            memory[key] = max(memory.get(key, 0.0), used.get(key, 0.0))
        results.setdefault(name, {})[str(seed)] = read_metrics(root / name / f"seed{seed}" / "metrics.csv")

    drawn = draw_panel(slug, paper, root, data, options.device, steps)
    if drawn:
        failures.append(drawn)

    from benchmarks.claims import check_all

    verdicts = check_all(paper, dataset, results)
    result = {
        "slug": slug,
        "dataset": dataset,
        "standin": standin,
        "profile": options.profile,
        "seeds": seeds,
        "overrides": overrides,
        "cases": max((len(table) for by_seed in results.values() for table in by_seed.values()), default=0),
        "code": ledger.digest_of_paper(slug, standin),
        "date": time.strftime("%Y-%m-%d"),
        "device": describe_device(options.device),
        "versions": versions(),
        "minutes": round(sum(map(sum, durations.values())) / 60 / parallel, 2),
        "parallel": parallel,
        "seconds_per_run": {name: round(sum(d) / len(d), 1) for name, d in durations.items() if d},
        **{key: round(value) for key, value in memory.items() if value},
        "verdicts": verdicts,
        "results": results,
    }
    if results:
        ledger.write_result(result, root / "result.json")
    return result, failures


def draw_panel(slug: str, paper: dict, root: Path, data: Path, device: str, steps: Steps) -> str | None:
    """Draw panel.png from the first seed's checkpoints, if they changed; returns what went wrong, if anything.

    It shows those of the paper's choice of variants (`panel`) that were run, or is left out if it needs the others.
    """
    every = [root / name / "seed0" / "checkpoint.pt" for name in paper["panel"]]
    checkpoints = [path for path in every if path.exists()]
    if not checkpoints:
        return None
    code = ledger.digest_of_code(ledger.paper_files(slug))
    digest = code + "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoints)
    marker = root / "panel.json"
    if not (root / "panel.png").exists() or _marker(marker).get("digest") != digest:
        arguments = {"data": data, "checkpoints": checkpoints, "out": root / "panel.png", "device": device}
        try:
            steps.run(f"papers.{slug}.eval", "panel", arguments, root)
        except (RuntimeError, InputError) as error:
            if len(checkpoints) < len(every):
                (root / "panel.png").unlink(missing_ok=True)
                say(f"picture    none, for it needs more variants: {error}")
                return None
            return f"panel: {error}"
        marker.write_text(json.dumps({"digest": digest}), "utf-8")
    say(f"picture    {relative(root / 'panel.png')}")
    return None


def _train_and_evaluate(
    slug: str, config, fingerprint: str, needed: Path | None, steps: Steps, label: str, row: int
) -> dict:
    """Train and evaluate one variant, or as much of it as is not up to date.

    Raises:
        RuntimeError, InputError: it failed; said on the terminal at once.
    """
    try:
        return _bring_up_to_date(slug, config, fingerprint, needed, steps, label, row)
    except (RuntimeError, InputError) as error:
        say(f"{label}: FAILED, {error}; going on with the others")
        raise


def _bring_up_to_date(
    slug: str, config, fingerprint: str, needed: Path | None, steps: Steps, label: str, row: int
) -> dict:
    folder = Path(config.out)
    if needed is not None:
        if not needed.exists():
            raise RuntimeError(f"needs {relative(needed)}, which is not there")
        fingerprint += hashlib.sha256(needed.read_bytes()).hexdigest()[:16]
    trained = digest_of_step(slug, config, fingerprint, with_evaluation=False)
    evaluated = digest_of_step(slug, config, fingerprint, with_evaluation=True)
    marker = folder / "steps.json"
    state = _marker(marker)
    if state.get("started") != trained:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        state = {"started": trained}
        marker.write_text(json.dumps(state))
    if state.get("evaluated") == evaluated and (folder / "metrics.csv").exists():
        say(f"{label}: up to date")
        return state["used"]
    say(f"{label} ...")
    used = dict(state.get("used", {"seconds": 0.0}))
    if state.get("trained") != trained:
        config.resume = True
        used = steps.run(f"papers.{slug}.train", "train", {"config": config}, folder, row)
        state = {**state, "trained": trained, "used": used}
        marker.write_text(json.dumps(state))
    arguments = {
        "data": config.data,
        "checkpoint": folder / "checkpoint.pt",
        "out": folder,
        "device": config.device,
    }
    more = steps.run(f"papers.{slug}.eval", "evaluate", arguments, folder, row)
    used = {key: used[key] + more[key] if key == "seconds" else max(used[key], more[key]) for key in used}
    marker.write_text(json.dumps({**state, "evaluated": evaluated, "used": used}))
    say(f"{label}: {used['seconds']:.0f} s")
    return used


# --- comparison with the ledger --------------------------------------------------------------------------


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


def main_one(slug: str, options: Options) -> bool:
    """One paper with its table; True if every step succeeded and, with `check`, agrees with the ledger."""
    from benchmarks import table

    result, failures = reproduce(slug, options)
    if options.dry_run:
        return True
    paper = ledger.load_paper(slug)
    if result["results"]:
        say("\n" + table.for_terminal(paper, result))
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
    if options.record and not failures:
        ledger.write_result(result, path)
        picture = ledger.ROOT / "runs" / slug / f"{result['dataset']}-{result['profile']}" / "panel.png"
        if picture.exists():
            shutil.copyfile(picture, path.with_suffix(".png"))
        table.write_all()
        say(f"recorded in {relative(path)}, and the tables written anew")
    for failure in failures:
        say(f"failed: {failure}")
    return not failures


def main_all(options: Options) -> bool:
    """Every paper, `jobs` at a time, each in a process of its own; a summary at the end."""
    passed = [f"--{name}" for name in ("record", "check", "dry_run") if getattr(options, name)]
    passed = [flag.replace("_", "-") for flag in passed]
    passed += ["--profile", options.profile, "--device", options.device]
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
        if options.record and options.profile == "smoke":
            raise InputError("a smoke run can't be recorded: it shows that the code runs, nothing else")
        ok = main_all(options) if options.paper == "all" else main_one(options.paper, options)
        if not ok:
            sys.exit(1)

    run_main(run)


if __name__ == "__main__":
    main()
