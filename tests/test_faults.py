"""The contract for broken data sets: a fault is one sentence and exit code 2, or harmless; never a traceback.

A fault is applied to one file of a copy of the paper's stand-in, then evaluation, training and, where there is one,
pre-training are run on it in this process. `FAULTS=all pytest tests/test_faults.py` tries every fault on the first
and last file of each kind; otherwise it is a selection, always the same, that takes about ten seconds a paper.

`[contract] alone` in paper.toml names files each of which is a whole case, so that no other file can contradict it:
without one, or with a smaller one, the test set is smaller, and that is right. Without any other file the test set must
not change, and a volume of another grid than its label, mask or sister must be refused.
"""

import csv
import io
import os
import re
import shutil
import traceback
import warnings
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest

from benchmarks import ledger
from tests.conftest import proposed
from tests.faults import Damage, damage_variants, relations
from tests.test_contract import each_paper, module

NOTES = {"standin.json", "STANDIN.txt"}  # what a stand-in says about itself; nothing reads them
FILE_FAULTS = {"garbage", "empty", "half", "a web page instead"}
GRID_FAULTS = {"mirrored affine", "moved by 10 cm", "one plane less"}
"""of a volume; it no longer fits its label, mask or the other modalities"""
HARMLESS = {
    "byte order mark", "lines of Windows", "blank lines", "another byte order", "columns first", "labels as floats",
    "stored the other way round",
}  # fmt: skip
"""the same content written in another way: refused, or evaluated to the same numbers"""
MEMORY = 4 * 2**30  # bytes that a broken file may make a process ask for, beyond what it has


class Outcome(NamedTuple):
    """What a command did."""

    command: str
    code: int | None
    """None: an exception went through"""
    message: str


class Paper:
    """Commands of a paper on copies of its stand-in."""

    def __init__(self, slug: str, data: Path, smoke_run, folder: Path):
        self.slug, self.data, self.folder = slug, data, folder
        self.variant = proposed(slug)
        paper = ledger.load_paper(slug)
        self.needed = next(v.get("needs") for v in paper["variant"] if v["name"] == self.variant)
        self.alone = {path for pattern in paper["contract"].get("alone", ()) for path in data.glob(pattern)}
        self.init = smoke_run(slug, self.needed) / "checkpoint.pt" if self.needed else None
        self.checkpoint = folder / "whole" / "checkpoint.pt"  # a copy: `evaluate` may leave things beside it
        shutil.copytree(smoke_run(slug), self.checkpoint.parent)
        module(slug, "eval").evaluate(data, self.checkpoint, folder / "before", device="cpu")
        self.before = table(folder / "before" / "metrics.csv")
        self.count = 0

    def run(self, command: str, call, argv: list) -> Outcome:
        said = io.StringIO()
        try:
            with redirect_stderr(said), redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call([str(part) for part in argv])
            code, error = 0, ""
        except SystemExit as stopped:
            code, error = stopped.code or 0, ""
        except Exception as exception:  # what the user would see as a traceback
            place = traceback.extract_tb(exception.__traceback__)
            place = [frame for frame in place if "/papers/" in frame.filename or "/shared/" in frame.filename] or place
            where = f"{Path(place[-1].filename).name}:{place[-1].lineno}"
            code, error = None, f"{type(exception).__name__} at {where}: {str(exception)[:150]}"
        return Outcome(command, code, error or said.getvalue())

    def outcomes(self, data: Path, out: Path, only: str = ""):
        """Evaluation, training, pre-training, or one of them; the caller stops where it has seen enough."""
        common = ["--data", data, "--device", "cpu"]
        evaluation, train = module(self.slug, "eval").main, module(self.slug, "train").main
        if only in ("", "evaluate"):
            argv = ["evaluate", "--checkpoint", self.checkpoint, "--out", out / "eval", *common]
            yield self.run("evaluate", evaluation, argv)
        for variant, init in ((self.variant, self.init), (self.needed, None)):
            if variant is not None and only in ("", f"train {variant}"):
                flags = ["--out", out / variant, "--profile", "smoke", "--variant", variant, *common]
                yield self.run(f"train {variant}", train, flags + (["--init", init] if init else []))

    def copy_with(self, relative: Path, damage: Damage) -> Path:
        """A copy of the data set by links, with one file of its own that is damaged."""
        self.count += 1
        copy = self.folder / f"{self.count}" / "data"
        shutil.copytree(self.data, copy, copy_function=os.link)
        damaged = copy / relative
        damaged.unlink()
        shutil.copy(self.data / relative, damaged)
        damage.apply(damaged)
        return copy

    def fault(self, relative: Path, damage: Damage, only: str = "") -> tuple[str, str]:
        """Which command refused the fault, and what is wrong with how it was met ("" if none, nothing)."""
        copy = self.copy_with(relative, damage)
        out = copy.parent
        try:
            for outcome in self.outcomes(copy, out, only):
                wrong = self.judge(outcome, relative, damage, copy, out)
                if wrong or outcome.code != 0:
                    refused = outcome.command if outcome.code != 0 else ""
                    return refused, wrong and f"{relative}, {damage.name}: {outcome.command}: {wrong}"
        finally:
            shutil.rmtree(out)
        return "", ""

    def judge(self, outcome: Outcome, relative: Path, damage: Damage, data: Path, out: Path) -> str:
        if outcome.code != 0:
            return refusal(outcome, data, relative)
        if outcome.command != "evaluate":
            return ""
        after = table(out / "eval" / "metrics.csv")
        text = relative.suffix in (".csv", ".json", ".txt", ".list", ".cfg")
        alone = self.data / relative in self.alone
        if after.keys() != self.before.keys() and not alone and (not text or damage.name == "gone"):
            return f"the test set changed silently from {len(self.before)} to {len(after)} cases"
        if damage.name in HARMLESS and not same(self.before, after):
            return "the same content in another form has other scores"
        finite_before = {name for row in self.before.values() for name, cell in row.items() if finite(cell)}
        for case, row in after.items():
            bad = [name for name in finite_before if name in row and row[name] and not finite(row[name])]
            bad = [name for name in bad if all(finite(old[name]) for old in self.before.values() if old[name])]
            if bad:
                return f"scored {case} with {bad[0]} = {row[bad[0]]}"
        return ""


def refusal(outcome: Outcome, data: Path, relative: Path) -> str:
    """What is wrong with how a command refused a file; "" if nothing."""
    if outcome.code is None:
        return f"traceback {outcome.message}"
    errors = [line for line in outcome.message.splitlines() if line.startswith("error: ")]
    if outcome.code != 2 or len(errors) != 1:
        return f"exit code {outcome.code} with {len(errors)} sentences: {outcome.message.strip()[-200:]}"
    names = (str(data), relative.name.split(".")[0])  # or the case, which is named after its file
    return "" if any(name in errors[0] for name in names) else f"names no file: {errors[0]}"


def table(path: Path) -> dict[str, dict[str, str]]:
    """case -> row of a metrics.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row.pop("case"): row for row in csv.DictReader(file)}


def same(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> bool:
    """Whether two tables hold the same texts and nearly the same numbers."""

    def number(cell: str) -> float | str:
        try:
            return float(cell)
        except ValueError:
            return cell

    cells = [[cell for row in table.values() for cell in row.values()] for table in (before, after)]
    return before.keys() == after.keys() and all(
        number(b) == (pytest.approx(number(a), rel=1e-3, abs=1e-3, nan_ok=True) if number(a) != a else a)
        for a, b in zip(*cells)
    )


def finite(cell: str) -> bool:
    return cell.lower().lstrip("-") not in ("nan", "inf", "")


def kinds_of_files(data: Path) -> list[list[Path]]:
    """Files of a data set, relative, in groups whose names differ in digits only."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(path for path in data.rglob("*") if path.is_file() and path.name not in NOTES):
        relative = path.relative_to(data)
        groups.setdefault(re.sub(r"\d+", "#", str(relative)), []).append(relative)
    return list(groups.values())


def suffix(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


def chosen(slug: str, data: Path, files: list[Path]) -> list[tuple[Path, Damage]]:
    """Each fault once per format, on a file that depends on the fault, and of those that may be harmless half.

    Which half differs between papers. Faults of the grid are tried on every file: which is the label nobody knows here.
    With FAULTS=all it is every fault of every file.
    """
    found = []
    for relative in files:
        same = [other for other in files if suffix(other) == suffix(relative)]
        for damage in damage_variants(data / relative):
            turn = zlib.crc32(f"{slug} {damage.name}".encode())
            wanted = damage.must or damage.name in ("gone", "stored the other way round") or turn // 64 % 2
            tried = damage.name in GRID_FAULTS or (wanted and turn % len(same) == same.index(relative))
            if os.environ.get("FAULTS") == "all" or tried:
                found.append((relative, damage))
    return found


def faults_of(slug: str, data: Path, smoke_run, folder: Path) -> tuple[list[str], int]:
    """What is wrong with how a paper meets faults, a line each, and how many were tried."""
    paper = Paper(slug, data, smoke_run, folder)
    wrong, reader = [], {}
    for group in kinds_of_files(data):
        for relative in dict.fromkeys((group[0], group[-1])):
            refused, complaint = paper.fault(relative, next(iter(damage_variants(data / relative))))
            wrong += [complaint] * bool(complaint)
            if refused:
                reader[relative] = refused  # the first command that reads the file is the one that faults are put to
    assert reader, "nothing reads the data set"
    every = os.environ.get("FAULTS") == "all"
    tried = chosen(slug, data, list(reader))
    across = [(path.relative_to(data), damage) for path, damage in relations(data)]
    for relative, damage in tried + across:
        everything = every or damage.name in ("gone", "a folder instead") or (relative, damage) in across
        refused, complaint = paper.fault(relative, damage, "" if everything else reader[relative])
        must = damage.must or (damage.name in GRID_FAULTS and data / relative not in paper.alone)
        if must and not refused and not complaint:
            complaint = f"{relative}, {damage.name}: was not noticed"
        wrong += [complaint] * bool(complaint)
    return wrong, len(tried + across)


def faults_of_apply(slug: str, data: Path, smoke_run, folder: Path) -> tuple[list[str], int]:
    """As `faults_of`, for the user's own file."""
    paper, wanted = Paper(slug, data, smoke_run, folder), ledger.load_paper(slug)["apply"]
    relative = sorted(data.glob(wanted["input"]))[0].relative_to(data)
    wrong = []
    damages = [damage for _, damage in chosen(slug, data, [relative])]
    for damage in damages:
        copy = paper.copy_with(relative, damage)
        output = copy.parent / "out" / wanted["output"]
        argv = ["apply", "--checkpoint", paper.checkpoint, "--input", copy / relative, "--output", output]
        argv += ["--device", "cpu", *(part.format(data=copy) for part in wanted.get("arguments", []))]
        outcome = paper.run("apply", module(slug, "eval").main, argv)
        complaint = refusal(outcome, copy, relative) if outcome.code != 0 else unfit(output)
        # Which arrays of a file `apply` reads is its own affair, and that of a label is not its.
        must = damage.must and (suffix(relative) in (".nii.gz", ".png", ".jpg", ".csv") or damage.name in FILE_FAULTS)
        if outcome.code == 0 and not complaint and (must or damage.name in ("gone", "a folder instead")):
            complaint = "was not noticed"
        if outcome.code and output.exists():
            complaint = complaint or "left an output behind"
        wrong += [f"{relative}, {damage.name}: apply: {complaint}"] * bool(complaint)
        shutil.rmtree(copy.parent)
    return wrong, len(damages)


def unfit(output: Path) -> str:
    """What is wrong with an output; "" if nothing."""
    if not output.exists():
        return "wrote nothing"
    if output.suffix == ".csv":
        cells = [cell for row in csv.reader(output.open(newline="", encoding="utf-8")) for cell in row]
        return "" if all(map(finite, cells)) else "wrote empty cells, NaN or infinity"
    if output.suffix == ".npy":
        return "" if np.isfinite(np.load(output)).all() else "wrote NaN or infinity"
    if output.suffix == ".npz":
        with np.load(output) as file:
            return "" if all(np.isfinite(file[name]).all() for name in file.files) else "wrote NaN or infinity"
    image = nibabel.load(output)
    good = np.isfinite(image.get_fdata()).all() and np.isfinite(image.affine).all()
    return "" if good and np.linalg.det(image.affine[:3, :3]) else "wrote NaN, infinity or no affine"


@pytest.fixture
def little_memory():
    """A file that makes a process ask for hundreds of GB fails at once, on any machine."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/statm")
    if status.exists():
        used = int(status.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@each_paper
@pytest.mark.slow
def test_faults(slug, smoke_data, smoke_run, tmp_path, little_memory):
    wrong, tried = faults_of(slug, smoke_data(slug), smoke_run, tmp_path)
    assert not wrong, f"{len(wrong)} of {tried} faults:\n" + "\n".join(wrong)


@each_paper
@pytest.mark.slow
def test_faults_of_the_users_own_file(slug, smoke_data, smoke_run, tmp_path, little_memory):
    if "apply" not in ledger.load_paper(slug):
        pytest.skip("this method has no output to apply")
    wrong, tried = faults_of_apply(slug, smoke_data(slug), smoke_run, tmp_path)
    assert not wrong, f"{len(wrong)} of {tried} faults:\n" + "\n".join(wrong)


def test_every_damage_changes_its_file(tmp_path):
    """A fault that leaves the file as it was would pass for one that is harmless."""
    import h5py
    from PIL import Image

    rng = np.random.default_rng(0)
    image, label = rng.random((6, 7, 8)).astype(np.float32), rng.integers(0, 3, (6, 7, 8), dtype=np.uint8)
    whole = tmp_path / "whole"
    whole.mkdir()
    with h5py.File(whole / "a.h5", "w") as file:
        file["image"], file["label"] = image, label
    np.savez(whole / "a.npz", image=image, label=label)
    np.save(whole / "a.npy", label)
    nibabel.save(nibabel.Nifti1Image(image, np.diag([1.0, 2, 3, 1])), whole / "a.nii.gz")
    Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(whole / "a.png")
    Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(whole / "a.jpg")
    (whole / "a.json").write_text('[{"id": 1, "size": 2.5, "name": "x"}, {"id": 2, "size": 3.5, "name": "y"}]\n')
    (whole / "b.json").write_text('{"size": [1.5, 2]}\n')
    (whole / "a.csv").write_text("id,size,file\n1,2.5,a/b.png\n2,3.5,a/c.png\n")
    (whole / "train.list").write_text("a\nb\n")
    (whole / "test.list").write_text("c\n")
    (whole / "a.cfg").write_text("ED: 1\nES: 5\n")
    (whole / "a.img").write_bytes(image.tobytes())
    seen = 0
    for path in sorted(whole.iterdir()):
        damages = list(damage_variants(path))
        damages += [damage for train, damage in relations(whole) if train == path]
        assert len({damage.name for damage in damages}) == len(damages)
        for damage in damages:
            copy = tmp_path / str(seen) / path.name
            copy.parent.mkdir()
            shutil.copy(path, copy)
            damage.apply(copy)
            assert not copy.is_file() or copy.read_bytes() != path.read_bytes(), f"{path.name}: {damage.name}"
            seen += 1
    assert seen > 200
