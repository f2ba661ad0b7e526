"""Train and evaluate what a plan asks for, as far as it is not up to date, several at a time."""

import importlib
import json
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import DataSet, relative, say
from benchmarks.fingerprint import (
    changed,
    digest_of_step,
    digests_of_files,
    read_marker,
    remove,
    write_marker,
)
from benchmarks.plan import Plan, Training, in_order, scaled
from benchmarks.steps import Steps, add_usage
from shared.cli import MAY_CHANGE_ON_RESUME, configure
from shared.errors import InputError

MARKER = "steps.json"


@dataclass(frozen=True)
class Setup:
    """What all trainings of a run share."""

    slug: str
    profile: str
    root: Path
    """folder of the run"""
    data: DataSet
    device: str
    overrides: dict
    plan: Plan
    steps: Steps

    def folder(self, training: Training) -> Path:
        return self.root / training.folder

    def checkpoint(self, training: Training) -> Path:
        return self.folder(training) / "checkpoint.pt"

    def config(self, training: Training):
        """The paper's `Config` for one training."""
        paper = importlib.import_module(f"papers.{self.slug}.train")
        needed = self.plan.needed_by(training)
        values = {
            "data": self.data.folder,
            "out": self.folder(training),
            "seed": training.seed,
            "device": self.device,
            "init": self.checkpoint(needed) if needed else None,
            **self.overrides,
        }
        modules = (paper.Config, paper.PROFILES, paper.VARIANTS)
        config = configure(*modules, self.profile, training.variant, **values)
        if training.length != 1:
            config = scaled(config, self.plan.curve.settings, training.length)
        return config


def run_all(setup: Setup, parallel: int, seconds: dict[str, float]) -> tuple[dict[Training, dict], dict[Training, str]]:
    """Every training of the plan, `parallel` at a time; whenever one ends, the first that waits for nothing begins.

    Args:
        setup: what the trainings share.
        parallel: trainings at a time.
        seconds: variant -> duration in an earlier result; the longest begin first.

    Returns:
        training -> what it used, of those that succeeded; training -> what went wrong, of those that did not.
    """
    waiting = in_order(setup.plan, seconds)
    total, begun = len(waiting), 0
    used: dict[Training, dict] = {}
    failures: dict[Training, str] = {}
    running: dict[Future, Training] = {}
    rows = list(range(parallel))  # lines of the terminal, for the progress bars

    def work(training: Training, label: str) -> dict:
        row = rows.pop()
        try:
            return bring_up_to_date(setup, training, label, row)
        finally:
            rows.append(row)

    with ThreadPoolExecutor(parallel) as pool:
        try:
            while waiting or running:
                ended = used.keys() | failures.keys()
                ready = [item for item in waiting if setup.plan.needed_by(item) in {None, *ended}]
                for training in ready[: parallel - len(running)]:
                    begun += 1
                    waiting.remove(training)
                    label = f"[{begun:2d}/{total}]    {training.label}"
                    running[pool.submit(work, training, label)] = training
                for task in wait(running, return_when=FIRST_COMPLETED).done:
                    training = running.pop(task)
                    try:
                        used[training] = task.result()
                    except (RuntimeError, InputError) as error:
                        failures[training] = str(error)
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)  # what runs writes its checkpoint first
            raise
    return used, failures


def bring_up_to_date(setup: Setup, training: Training, label: str, row: int = 0) -> dict:
    """Train and evaluate one variant, or as much of it as is not up to date.

    The marker `steps.json` holds the digest of all that the training depends on (`started`), of what has been done
    (`trained`, `evaluated`), and of every file that the two steps wrote.

    Returns:
        what both steps used: `seconds`, `processor_seconds`, `memory_mb`, ...

    Raises:
        RuntimeError, InputError: it failed; said on the terminal at once.
    """
    try:
        config, folder = setup.config(training), setup.folder(training)
        data = setup.data.fingerprint
        needed = setup.plan.needed_by(training)
        if needed:
            made = read_marker(setup.folder(needed) / MARKER).get("trained_files", {})
            if "checkpoint.pt" not in made:
                raise RuntimeError(f"needs {relative(setup.checkpoint(needed))}, which is not there")
            data += made["checkpoint.pt"]
        to_train = digest_of_step(setup.slug, config, data, with_evaluation=False)
        to_evaluate = digest_of_step(setup.slug, config, data, with_evaluation=True)

        state = read_marker(folder / MARKER)
        odd = changed(folder, state.get("trained_files", {}))
        if state.get("started") != to_train or odd:
            if odd:
                say(f"{label}: {', '.join(odd)} is not what the training wrote: made again")
            state = _begin(folder, to_train)
        odd = changed(folder, state.get("evaluated_files", {}))
        if state.get("evaluated") == to_evaluate and not odd:
            say(f"{label}: up to date")
            return state["used"]
        say(f"{label}: {', '.join(odd)} is not what the evaluation wrote: made again" if odd else f"{label} ...")
        if "trained" not in state:
            state = _train(setup, config, state, label, row)
        state = _evaluate(setup, config, {**state, "evaluated": to_evaluate}, row)
        say(f"{label}: {state['used']['seconds']:.0f} s")
        return state["used"]
    except (RuntimeError, InputError) as error:
        say(f"{label}: FAILED, {error}; going on with the others")
        raise


def _begin(folder: Path, digest: str) -> dict:
    """Empty the folder of a training; returns its new state."""
    remove(folder)
    state = {"started": digest}
    write_marker(folder / MARKER, state)
    return state


def _train(setup: Setup, config, state: dict, label: str, row: int) -> dict:
    """Train, from the checkpoint that an interrupted training left if there is one; returns the new state."""
    folder = Path(config.out)
    config.resume = True
    arguments = {"config": config}
    if (folder / "checkpoint.pt").exists() and not _can_go_on(setup, folder):
        say(f"{label}: what an interrupted training left is damaged: trained from the start")
        _begin(folder, state["started"])
    for hidden in folder.glob(".*"):
        if hidden.is_dir():  # where a lock or a report of what was used should be
            remove(hidden)
    go_on = (folder / "checkpoint.pt").exists()
    used = setup.steps.run(f"papers.{setup.slug}.train", "train", arguments, folder, row, go_on)
    state = {**state, "trained": True, "training_used": used}
    state["trained_files"] = {name: digest for name, digest in digests_of_files(folder).items() if name != MARKER}
    write_marker(folder / MARKER, state)
    return state


def _can_go_on(setup: Setup, folder: Path) -> bool:
    arguments = {"folder": folder, "paper": setup.slug}
    try:
        setup.steps.run("benchmarks.runs", "check_interrupted", arguments, folder)
    except (RuntimeError, InputError):
        return False
    return True


def check_interrupted(folder: Path, paper: str) -> None:
    """What an interrupted training left belongs together: its checkpoint, its configuration, its log up to there.

    Raises:
        InputError: something is missing or damaged.
    """
    from shared.checkpoints import load_checkpoint

    content = load_checkpoint(folder / "checkpoint.pt", paper)
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if any(config[k] != v for k, v in content["config"].items() if k not in MAY_CHANGE_ON_RESUME):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'config.json'} is not the configuration of the checkpoint") from error
    if content["step"] == 0:
        return
    try:
        header, *rows = (folder / "log.csv").read_text("utf-8").split("\n")
        table = [[float(cell or "nan") for cell in row.split(",")] for row in rows[:-1]]  # the last may be cut short
        if any(len(row) != len(header.split(",")) for row in table) or max(row[0] for row in table) < content["step"]:
            raise ValueError
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'log.csv'} does not reach the checkpoint's step {content['step']}") from error


def _evaluate(setup: Setup, config, state: dict, row: int) -> dict:
    """Evaluate the checkpoint; returns the new state."""
    folder = Path(config.out)
    for name in {"metrics.csv", *state.get("evaluated_files", {})}:
        remove(folder / name)
    arguments = {
        "data": config.data,
        "checkpoint": folder / "checkpoint.pt",
        "out": folder,
        "device": config.device,
    }
    used = setup.steps.run(f"papers.{setup.slug}.eval", "evaluate", arguments, folder, row)
    if not (folder / "metrics.csv").is_file():
        raise RuntimeError("the evaluation wrote no metrics.csv")
    state["used"] = add_usage(state["training_used"], used)
    known = {MARKER, *state["trained_files"]}
    state["evaluated_files"] = {name: d for name, d in digests_of_files(folder).items() if name not in known}
    write_marker(folder / MARKER, state)
    return state
