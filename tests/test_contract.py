"""The contract that every paper meets, whatever it is about. One set of tests over all folders of `papers/`."""

import ast
import contextlib
import importlib
import itertools
import json
import re
import resource
import shutil
import subprocess
import sys
import typing
from fnmatch import fnmatch
from pathlib import Path

import pytest

from benchmarks import claims, finding, ledger, plan
from tests.conftest import proposed
from tests.damage import put_nan, truncate
from tests.smoke import smoke_config, train_in_processes, train_variant

ROOT = ledger.ROOT
SLUGS = ledger.slugs()
NOT_RUN_YET = {"cdinet": {"C1d", "C5a"}}
"""Claims that the study should run, or say why they can't be decided; none is added."""
CLAIM_KEYS = {
    *(
        "id",
        "text",
        "kind",
        "metric",
        "reported",
        "datasets",
        "cases",
        "requires",
        "decidable",
        "deterministic",
        "unit",
    ),
    *("variants", "variant", "than", "x", "direction", "weights", "value", "tolerance", "margin"),
}
each_paper = pytest.mark.parametrize(
    "slug", [pytest.param(slug, marks=pytest.mark.xdist_group(slug)) for slug in SLUGS]
)


def module(slug: str, name: str):
    return importlib.import_module(f"papers.{slug}.{name}")


def exit_of(call, argv: list[str], capsys) -> tuple[int, str]:
    """Exit code and stderr of a command line."""
    with pytest.raises(SystemExit) as stopped:
        call(argv)
    return stopped.value.code, capsys.readouterr().err


def assert_one_sentence(code: int, message: str, *expected: str) -> None:
    """A user's mistake: exit code 2, one line, no traceback, naming what is concerned."""
    assert code == 2, message
    lines = [line for line in message.strip().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in message, message
    for part in expected:
        assert part in errors[0], f"expected {part!r} in: {errors[0]}"


# --- what lies in the folder -----------------------------------------------------------------------------


@each_paper
def test_files(slug):
    for name in ("README.md", "paper.toml", "model.py", "data.py", "train.py", "eval.py", "__init__.py"):
        assert (ROOT / "papers" / slug / name).is_file(), f"papers/{slug}/{name} is missing"
    assert (ROOT / "tests" / "papers" / f"test_{slug}.py").is_file()
    assert (ROOT / "benchmarks" / "standins" / f"{slug}.py").is_file()
    for path in (ROOT / "papers" / slug).rglob("*.py"):
        assert path.stem not in ("utils", "helpers", "misc", "common"), f"name {path} after what it holds"


@each_paper
def test_paper_toml(slug):
    paper = ledger.load_paper(slug)
    assert paper["slug"] == slug
    for key in ("name", "title", "authors", "venue", "year", "task", "modality", "datasets", "standin"):
        assert paper.get(key), f"paper.toml has no {key}"
    for dataset in paper["datasets"]:
        assert {"name", "access", "url", "n"} <= set(dataset)
    variants = [variant["name"] for variant in paper["variant"]]
    assert len(set(variants)) == len(variants)
    assert set(variants) == set(module(slug, "train").VARIANTS), "variants of paper.toml and train.py differ"
    assert [v["role"] for v in paper["variant"]].count("proposed") == 1
    for variant in paper["variant"]:
        assert variant["role"] in ("proposed", "baseline", "ablation", "input", "pretraining"), variant
        assert variant["label"]
        assert variant.get("needs") in (None, *variants)
    for profile in ("smoke", "cpu", "paper"):
        assert profile in paper["profiles"] and profile in module(slug, "train").PROFILES
        assert set(paper["profiles"][profile].get("variants", [])) <= set(variants)
    metrics = {metric["column"]: metric for metric in paper["metric"]}
    for row in paper.get("result", []):
        assert row["metrics"] and all(isinstance(value, int | float) for value in row["metrics"].values())
    for metric in paper["metric"]:
        assert metric["better"] in ("lower", "higher") and metric["label"]
        if "reported" in metric:
            values = [finding.reported_value(paper, variant, metric) for variant in paper["variant"]]
            assert any(value is not None for value in values), f"no number of the paper for {metric}"
    for variant in paper["variant"]:
        if "reported" in variant:
            values = [finding.reported_value(paper, variant, metric) for metric in paper["metric"]]
            assert any(value is not None for value in values), f"no number of the paper for {variant}"
    assert paper["claim"], "a paper without claims can't be reproduced"
    assert len({claim["id"] for claim in paper["claim"]}) == len(paper["claim"])
    for claim in paper["claim"]:
        assert claim["kind"] in claims.KINDS and claim["text"] and claim["reported"]
        assert set(claim) <= CLAIM_KEYS, f"{claim['id']}: unknown {set(claim) - CLAIM_KEYS}"
        assert claim["metric"] in metrics, f"{claim['id']}: no metric {claim['metric']}"
        assert set(claims.variants_of(claim)) <= set(variants), claim
        controls = [other for other in paper["claim"] if other["id"] in claim.get("requires", [])]
        assert len(controls) == len(claim.get("requires", [])), f"{claim['id']}: requires a claim that is not there"
        for control in controls:
            assert not control.get("requires"), f"{claim['id']}: its control {control['id']} needs a control itself"
            assert control.get("datasets") == claim.get("datasets"), f"{claim['id']} and its control differ in datasets"
    by_id = {claim["id"]: claim for claim in paper["claim"]}
    for profile, settings in paper["profiles"].items():
        runs = set(settings.get("variants", variants))
        for name in settings.get("claims", []):
            missing = set(claims.variants_of(by_id[name])) - runs
            assert not missing, f"profile {profile} claims {name}, which needs {missing}, and it does not run them"


@each_paper
def test_the_standin_has_every_size(slug):
    """`make reproduce PROFILE=...` asks the generator for a data set of the profile's size."""
    generator = importlib.import_module(f"benchmarks.standins.{slug}")
    sizes = set(typing.get_args(typing.get_type_hints(generator.generate)["size"]))
    assert sizes >= {"smoke", "cpu", "study", "paper"}
    tables = {name: set(table) for name, table in vars(generator).items() if isinstance(table, dict)}
    for name, keys in tables.items():
        assert not {"smoke", "cpu"} <= keys or keys == sizes, f"{name} has {sorted(keys)}, generate() {sorted(sizes)}"


@each_paper
def test_evidence(slug):
    """What a verdict needs: enough seeds, a headline with its control and its length curve, no claim left out."""
    paper = ledger.load_paper(slug)
    assert set(module(slug, "train").PROFILES) == set(paper["profiles"]) == {"smoke", "cpu", "study", "paper"}
    main = ledger.headline(paper, "standin")
    assert main, "[study] headline: no claim speaks about the stand-in"
    assert "decidable" not in main and main["id"] not in ledger.controls_of(paper)
    assert main.get("requires"), f"the headline {main['id']} needs a control: the baseline beats doing nothing"

    def seeds(profile: str, dataset: str = "standin") -> dict[str, int]:
        found = plan.make_plan(paper, profile, dataset, dataset == "standin", None, None, False).seeds
        return {name: number for name, number in found.items() if ledger.trains(paper, name)}

    for name, number in seeds("study").items():
        least = 5 if name in claims.variants_of(main) else 3
        assert number >= least, f"profile study: {number} seeds of {name}, expected {least}"
    for profile, dataset in (("cpu", "standin"), ("study", "real")):
        few = {name: number for name, number in seeds(profile, dataset).items() if number < 3}
        assert not few, f"profile {profile} on {dataset}: expected 3 seeds or more, found {few}"
    settings = paper["profiles"]["cpu"].get("claims", [claim["id"] for claim in paper["claim"]])
    # A headline that still moves with training is left to the study; then cpu claims its controls.
    assert {main["id"], *main["requires"]} & set(settings), "profile cpu claims neither the headline nor its controls"
    run = set(plan.make_plan(paper, "study", "standin", True, None, None, False).seeds)
    chosen = paper["profiles"]["study"].get("claims")
    for claim in ledger.claims_for(paper, "standin"):
        missing = set(claims.variants_of(claim)) - run
        if claim["id"] in NOT_RUN_YET.get(slug, ()):
            assert missing and "decidable" not in claim, f"take {claim['id']} out of NOT_RUN_YET"
        elif "decidable" not in claim:
            assert not missing, f"{claim['id']} needs {missing}, which the profile study does not run"
            assert chosen is None or claim["id"] in chosen, f"profile study leaves out {claim['id']}"
    assert set(paper["study"].get("curves", [])) <= {claim["id"] for claim in paper["claim"]} - {main["id"]}
    length = paper["study"]["length"]
    for name in [length] if isinstance(length, str) else length:
        assert name in module(slug, "train").Config.__dataclass_fields__, f"[study] length: no setting {name}"
    assert not any(fnmatch("standin", pattern) for pattern in paper.get("own", [])), "the stand-in is nobody's own data"


@each_paper
def test_imports_go_one_way(slug):
    for path in ledger.paper_files(slug):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                first, *rest = name.split(".")
                assert first not in ("benchmarks", "tests"), f"{path} imports {name}"
                assert first != "papers" or rest[0] == slug, f"{path} imports another paper: {name}"


@each_paper
def test_readme_names_things_that_exist(slug):
    text = (ROOT / "papers" / slug / "README.md").read_text("utf-8")
    for heading in (
        "## Run it",
        "## Results",
        "## Where each part lives",
        "## Deviations and choices",
        "## Errata",
    ):
        assert heading in text, f"README.md has no section '{heading}'"
    section = text.split("## Where each part lives")[1].split("\n## ")[0]
    parts = re.findall(r"^\| \*{0,2}M(\d+)", section, re.M)
    assert parts and [int(part) for part in parts] == list(range(1, len(parts) + 1)), parts
    names = re.findall(r"`(\w+)\.(\w+(?:\.\w+)?)`", section)
    assert len(names) >= len(parts), "each part needs at least one `file.name`"
    for file, name in names:
        found = module(slug, file)
        for attribute in name.split("."):
            found = getattr(found, attribute, None)
            assert found is not None, f"README.md names {file}.{name}, which does not exist"


@each_paper
def test_every_setting_is_documented_and_read(slug):
    train = module(slug, "train")
    paper_code = "".join(path.read_text("utf-8") for path in ledger.paper_files(slug))
    shared_code = (ROOT / "shared" / "gpu.py").read_text("utf-8")
    tree = ast.parse((ROOT / "papers" / slug / "train.py").read_text("utf-8"))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Config").body
    for position, node in enumerate(body):
        if isinstance(node, ast.AnnAssign):
            after = body[position + 1] if position + 1 < len(body) else None
            documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert documented, f"Config.{node.target.id} has no docstring"
    for name in train.Config.__dataclass_fields__:
        if name in ("profile", "init"):
            continue
        used = re.search(rf"(?:config|options)\.{name}\b", paper_code + shared_code)
        assert used, f"nothing reads the setting {name}"


@each_paper
def test_command_lines_answer_at_once(slug):
    for name in ("train", "eval"):
        before = child_seconds()
        done = subprocess.run(
            [sys.executable, "-m", f"papers.{slug}.{name}", "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        seconds = child_seconds() - before  # of the processor, so that a busy machine makes no difference
        assert done.returncode == 0, done.stderr
        assert "torch" not in heavy_imports(f"papers.{slug}.{name}"), f"{name}.py imports torch at its top"
        assert seconds < 1.5, f"--help took {seconds:.1f} s"


def child_seconds() -> float:
    """Processor time of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def heavy_imports(name: str) -> set[str]:
    code = f"import sys, {name}; print(*[m for m in ('torch', 'scipy', 'pandas', 'matplotlib') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
    )
    return set(done.stdout.split())


# --- what training does ----------------------------------------------------------------------------------


@each_paper
def test_every_parameter_gets_a_gradient(slug, smoke_watched):
    for variant in ledger.load_paper(slug)["variant"]:
        seen = smoke_watched(slug, variant["name"])[1].gradients
        dead = [name for name, good in seen.items() if not good]
        assert not dead, f"variant {variant['name']}: no finite gradient in {dead}"
        assert seen or variant["role"] == "input", f"variant {variant['name']} trains nothing"


@each_paper
def test_variants_start_from_the_same_weights_and_see_the_same_samples(slug, smoke_watched):
    """With one seed, a variant differs from another in what it is, and not in how its weights or samples were drawn."""
    paper = ledger.load_paper(slug)
    unpaired = paper.get("contract", {}).get("unpaired", {})  # parts of a batch, or weights -> why they differ
    different: list[str] = []
    by_start: dict[str | None, list[str]] = {}
    for variant in paper["variant"]:
        by_start.setdefault(variant.get("needs"), []).append(variant["name"])
    for names in by_start.values():
        for one, other in itertools.combinations(names, 2):
            a, b = smoke_watched(slug, one)[1], smoke_watched(slug, other)[1]
            found = differing(*of_equal_modules(a.initial, b.initial))
            found = [name for name in found if name.split(":", 1)[1] not in unpaired]
            different += [f"{one}, {other}: {name}" for name in found]
            if a.source == b.source:
                for step, batches in enumerate(zip(a.batches, b.batches)):
                    found = set(differing(*batches)) - set(unpaired)
                    different += [f"{one}, {other}: batch {step}, {name}" for name in sorted(found)]
    assert not different, "\n".join(different[:20])


def of_equal_modules(a: dict[str, tuple], b: dict[str, tuple]) -> tuple[dict, dict]:
    """The weights of modules all of whose weights agree in shape: a bias is drawn by the width of its layer."""

    def modules(weights: dict[str, tuple]) -> dict[str, dict]:
        found: dict[str, dict] = {}
        for name, (shape, _) in weights.items():
            found.setdefault(re.sub(r"[./][^./]*$", "", name), {})[name] = shape
        return found

    one, other = modules(a), modules(b)
    same = [name for module, shapes in one.items() if other.get(module) == shapes for name in shapes]
    return {name: a[name] for name in same}, {name: b[name] for name in same}


def differing(a: dict[str, tuple], b: dict[str, tuple]) -> list[str]:
    """Names whose shapes agree and whose values don't."""
    return [name for name, (shape, value) in a.items() if name in b and b[name][0] == shape and b[name][1] != value]


def load(folder: Path) -> dict:
    from shared.checkpoints import load_checkpoint

    return load_checkpoint(folder / "checkpoint.pt")


def assert_same(a, b, path="") -> None:
    """Bit for bit the same tensors in nested dictionaries and lists."""
    import torch

    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for number, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{path}/{number}")
    else:
        assert a == b, path


@each_paper
def test_stop_and_resume_is_bit_exact(slug, smoke_data, smoke_run, tmp_path, monkeypatch):
    from shared import gpu
    from shared.training_log import read_log

    variant = proposed(slug)
    needed = next(v.get("needs") for v in ledger.load_paper(slug)["variant"] if v["name"] == variant)
    init = smoke_run(slug, needed) / "checkpoint.pt" if needed else None
    whole = load(smoke_run(slug, variant))
    stop_at = max(1, whole["step"] // 2)
    assert whole["step"] > stop_at, "a smoke run needs at least 2 steps"
    after_step = gpu.Run._after_step

    def interrupt(self, bar):
        self._interrupted = self.step == stop_at
        return after_step(self, bar)

    with monkeypatch.context() as patched:
        patched.setattr(gpu.Run, "_after_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_variant(slug, variant, smoke_data(slug), tmp_path, init=init)
    assert load(tmp_path)["step"] == stop_at
    train_variant(slug, variant, smoke_data(slug), tmp_path, init=init, resume=True)
    resumed = load(tmp_path)
    for key in ("step", "models", "objects", "rng"):
        assert_same(whole[key], resumed[key], key)
    log = [read_log(folder / "log.csv") for folder in (smoke_run(slug, variant), tmp_path)]
    assert log[0]["step"] == log[1]["step"] and log[0]["loss"] == log[1]["loss"]


@each_paper
def test_two_processes_follow_one(slug, smoke_data, smoke_run, tmp_path):
    from shared.training_log import read_log

    variant = proposed(slug)
    needed = next(v.get("needs") for v in ledger.load_paper(slug)["variant"] if v["name"] == variant)
    values = {"init": smoke_run(slug, needed) / "checkpoint.pt"} if needed else {}
    size = smoke_config(slug, variant, tmp_path, tmp_path).batch_size
    values["batch_size"] = max(2, size + size % 2)
    train_variant(slug, variant, smoke_data(slug), tmp_path / "one", **values)
    train_in_processes(2, slug, variant, smoke_data(slug), tmp_path / "two", **values)
    one, two = (read_log(tmp_path / name / "log.csv")["loss"] for name in ("one", "two"))
    assert len(one) == len(two)
    assert two == pytest.approx(one, rel=1e-4, abs=1e-6)


# --- what evaluation writes ------------------------------------------------------------------------------


@each_paper
def test_evaluation_and_panel(slug, smoke_data, smoke_run, tmp_path):
    import csv

    paper, evaluation = ledger.load_paper(slug), module(slug, "eval")
    evaluation.evaluate(smoke_data(slug), smoke_run(slug) / "checkpoint.pt", tmp_path, device="cpu")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and len({row["case"] for row in rows}) == len(rows)
    for metric in paper["metric"]:
        assert metric["column"] in rows[0], f"metrics.csv has no column {metric['column']}"
    checkpoints = [smoke_run(slug, name) / "checkpoint.pt" for name in paper["panel"]]
    evaluation.panel(smoke_data(slug), checkpoints, tmp_path / "panel.png", device="cpu")
    from matplotlib.image import imread

    assert imread(tmp_path / "panel.png").std() > 0.02, "the panel is empty"


def input_of_apply(slug: str, data: Path) -> Path:
    return next(iter(sorted(data.glob(ledger.load_paper(slug)["apply"]["input"]))))


def apply_argv(slug: str, data: Path, given: Path, output: Path, checkpoint: Path) -> list[str]:
    flags = {"--checkpoint": checkpoint, "--input": given, "--output": output, "--device": "cpu"}
    extra = [part.format(data=data) for part in ledger.load_paper(slug)["apply"].get("arguments", [])]
    return ["apply", *[str(part) for pair in flags.items() for part in pair], *extra]


def evaluate_argv(data: Path, out: Path, checkpoint: Path) -> list[str]:
    flags = {"--data": data, "--checkpoint": checkpoint, "--out": out, "--device": "cpu"}
    return ["evaluate", *[str(part) for pair in flags.items() for part in pair]]


@each_paper
def test_apply(slug, smoke_data, smoke_run, tmp_path, capsys):
    paper, evaluation = ledger.load_paper(slug), module(slug, "eval")
    if "apply" not in paper:
        pytest.skip("this method has no output to apply")
    given = input_of_apply(slug, smoke_data(slug))
    output = tmp_path / "out" / paper["apply"]["output"]
    checkpoint = smoke_run(slug) / "checkpoint.pt"

    def argv(input_path):
        return apply_argv(slug, smoke_data(slug), input_path, output, checkpoint)

    assert_one_sentence(*exit_of(evaluation.main, argv(tmp_path / "absent" / given.name), capsys), "absent")
    if given.is_file():
        copy = tmp_path / "copy"
        shutil.copytree(smoke_data(slug), copy)
        broken = copy / given.relative_to(smoke_data(slug))
        truncate(broken)
        assert_one_sentence(*exit_of(evaluation.main, argv(broken), capsys), given.name)
    assert not output.exists(), "a failed apply left something behind"
    evaluation.main(argv(given))
    assert output.exists()
    if output.name.endswith((".nii", ".nii.gz")):
        import nibabel
        import numpy as np

        image = nibabel.load(output)
        assert np.isfinite(image.get_fdata()).all() and np.linalg.det(image.affine[:3, :3]) != 0
    if output.name.endswith(".csv"):
        import csv

        with output.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert len(rows) > 1 and all(len(row) == len(rows[0]) and all(row) for row in rows), "empty cells"
        assert not any(cell.lower().lstrip("-") in ("nan", "inf") for row in rows for cell in row)


# --- what a user sees who makes a mistake ----------------------------------------------------------------


def train_argv(data: Path, out: Path, variant: str, *extra: str) -> list[str]:
    flags = {"--data": data, "--out": out, "--profile": "smoke", "--variant": variant, "--device": "cpu"}
    return [str(part) for pair in flags.items() for part in pair] + list(extra)


@each_paper
def test_bad_data(slug, smoke_data, tmp_path, capsys):
    train, variant = module(slug, "train"), proposed(slug)
    run = tmp_path / "run"
    absent, empty = tmp_path / "absent", tmp_path / "empty"
    empty.mkdir()
    assert_one_sentence(*exit_of(train.main, train_argv(absent, run, variant), capsys), "absent")
    assert_one_sentence(*exit_of(train.main, train_argv(empty, run, variant), capsys), "empty")
    pattern = ledger.load_paper(slug)["contract"]["image"]
    for damage in (truncate, put_nan):
        copy = tmp_path / damage.__name__
        shutil.copytree(smoke_data(slug), copy)
        files = sorted(copy.glob(pattern))
        assert files, f"paper.toml: contract.image = '{pattern}' matches nothing"
        damaged = [damage(path) for path in files]
        if damage is put_nan and not any(damaged):
            continue  # a format of whole numbers
        code, message = exit_of(train.main, train_argv(copy, run, variant), capsys)
        assert_one_sentence(code, message)
        assert any(path.name in message for path in files), f"the message names no file: {message}"
    assert not (run / "checkpoint.pt").exists()


@each_paper
def test_wrong_checkpoints(slug, smoke_data, smoke_run, tmp_path, capsys):
    train, evaluation, paper = module(slug, "train"), module(slug, "eval"), ledger.load_paper(slug)
    data, run = smoke_data(slug), tmp_path / "run"
    shutil.copytree(smoke_run(slug), run)
    other = next(v["name"] for v in paper["variant"] if v["role"] != "proposed")
    argv = train_argv(data, run, other, "--resume")
    assert_one_sentence(*exit_of(train.main, argv, capsys), "checkpoint.pt", "variant")

    def evaluate(checkpoint):
        return exit_of(evaluation.main, evaluate_argv(data, tmp_path / "out", checkpoint), capsys)

    assert_one_sentence(*evaluate(tmp_path / "nothing.pt"), "nothing.pt")
    truncate(run / "checkpoint.pt")
    assert_one_sentence(*evaluate(run / "checkpoint.pt"), "checkpoint.pt")
    from shared.checkpoints import load_checkpoint, save_checkpoint

    foreign = {**load_checkpoint(smoke_run(slug) / "checkpoint.pt"), "paper": "another"}
    save_checkpoint(tmp_path / "foreign.pt", foreign)
    assert_one_sentence(*evaluate(tmp_path / "foreign.pt"), "another")
    assert not (tmp_path / "out" / "metrics.csv").exists()


def evaluate_and_apply(slug: str, data: Path, folder: Path, checkpoint: Path) -> list[tuple[list[str], Path]]:
    """Command lines, each with what it would write in `folder`."""
    both = [(evaluate_argv(data, folder, checkpoint), folder / "metrics.csv")]
    paper = ledger.load_paper(slug)
    if "apply" in paper:
        output = folder / paper["apply"]["output"]
        both.append((apply_argv(slug, data, input_of_apply(slug, data), output, checkpoint), output))
    return both


@each_paper
def test_checkpoints_edited_by_hand(slug, smoke_data, smoke_run, tmp_path, capsys):
    """Whole and with a right digest, but wrong: one sentence, by whichever command reads it."""
    from shared.checkpoints import save_checkpoint

    content = load(smoke_run(slug))
    config, checkpoint = content["config"], tmp_path / "edited.pt"
    count = next(
        name for name in reversed(module(slug, "train").Config.__dataclass_fields__) if type(config[name]) is int
    )
    edited = {
        "a setting of a wrong type": {**content, "config": {**config, count: "x"}},
        "a setting less": {**content, "config": {name: config[name] for name in config if name != count}},
        "weights of other shapes": changed_weights(content, lambda weight: weight[None].clone()),
        "no models": {**content, "models": [], "objects": {}},
    }
    for what, changed in edited.items():
        save_checkpoint(checkpoint, changed)
        for argv, output in evaluate_and_apply(slug, smoke_data(slug), tmp_path / "out", checkpoint):
            code, message = exit_of(module(slug, "eval").main, argv, capsys)
            assert_one_sentence(code, f"{argv[0]}, {what}\n{message}", "edited.pt")
            assert not output.exists()


@each_paper
def test_predictions_that_are_not_finite(slug, smoke_data, smoke_run, tmp_path, capsys, monkeypatch):
    """Weights that are NaN are refused where a checkpoint is read, and what they predict where it is used."""
    from shared import checkpoints

    checkpoint = tmp_path / "broken.pt"
    checkpoints.save_checkpoint(
        checkpoint, changed_weights(load(smoke_run(slug)), lambda weight: weight * float("nan"))
    )
    commands = evaluate_and_apply(slug, smoke_data(slug), tmp_path / "out", checkpoint)
    assert_one_sentence(*exit_of(module(slug, "eval").main, commands[0][0], capsys), "broken.pt", "not finite")
    monkeypatch.setattr(checkpoints, "refuse_nan", lambda states, path: None)
    for argv, output in commands:
        assert_one_sentence(*exit_of(module(slug, "eval").main, argv, capsys), "not finite")
        assert not output.exists()


def changed_weights(content: dict, change) -> dict:
    """`change` done to every matrix and kernel of the models, and of selected weights among the objects."""
    import torch

    def weights(state: dict) -> dict:
        matrices = {
            name: value
            for name, value in state.items()
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1
        }
        return {**state, **{name: change(value) for name, value in matrices.items()}}

    def objects(state):
        if not isinstance(state, dict):
            return state
        return {key: weights(value) if key == "weights" and value else objects(value) for key, value in state.items()}

    return {
        **content,
        "models": [weights(state) for state in content["models"]],
        "objects": objects(content["objects"]),
    }


@each_paper
def test_nothing_of_the_users_is_overwritten(slug, smoke_data, smoke_run, tmp_path, capsys):
    train, evaluation, paper, data = (
        module(slug, "train"),
        module(slug, "eval"),
        ledger.load_paper(slug),
        smoke_data(slug),
    )
    variant = proposed(slug)
    needed = next(v.get("needs") for v in paper["variant"] if v["name"] == variant)
    init = ["--init", str(smoke_run(slug, needed) / "checkpoint.pt")] if needed else []
    run, file = tmp_path / "run", tmp_path / "mine.txt"
    shutil.copytree(smoke_run(slug), run)
    file.write_text("mine")
    (run / ".lock").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    argv = train_argv(data, run, variant, *init)
    assert_one_sentence(*exit_of(train.main, argv, capsys), "checkpoint.pt", "--resume", "--overwrite")
    with lock_held(run / ".lock"):
        assert_one_sentence(*exit_of(train.main, [*argv, "--resume"], capsys), str(run), "in use")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}

    assert_one_sentence(*exit_of(train.main, train_argv(data, file, variant, *init), capsys), "mine.txt")
    assert_one_sentence(*exit_of(evaluation.main, evaluate_argv(data, file, run / "checkpoint.pt"), capsys), "mine.txt")
    if "apply" in paper:
        given = tmp_path / input_of_apply(slug, data).name
        given.write_text("mine, too")
        for output in (given, run / "checkpoint.pt", file / "out.nii", run):
            argv = apply_argv(slug, data, given, output, run / "checkpoint.pt")
            assert_one_sentence(*exit_of(evaluation.main, argv, capsys), str(file if output.parent == file else output))
        assert given.read_text() == "mine, too"
    assert file.read_text() == "mine"


@contextlib.contextmanager
def lock_held(path: Path):
    """Another process holds this lock."""
    code = "import sys; from pathlib import Path; from shared.locks import Lock; lock = Lock(Path(sys.argv[1]), ''); "
    code += "print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield
        process.stdin.close()


# --- the repository --------------------------------------------------------------------------------------


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_machine_paths_and_no_registry_addresses():
    here = "|".join(["/" + name + "/" for name in ("home", "work", "root", "Users", "opt", "mnt")])
    registry = "|".join(["py" + "pi", "pytho" + "nhosted", "download.py" + "torch"])
    forbidden = re.compile(rf"(?<![\w.<}}])(?:{here})\w|https?://[\w.]*(?:{registry})")
    for path in tracked_files():
        if path.suffix in (".py", ".toml", ".md", ".lock", ".yml", ".json", ".txt", ".cff") or path.name == "Makefile":
            found = forbidden.search(path.read_text("utf-8"))
            assert not found, f"{path}: {found.group()}"


def test_no_large_files():
    for path in tracked_files():
        assert path.stat().st_size < 2_000_000, f"{path} is {path.stat().st_size} bytes"


def test_shared_imports_neither_papers_nor_benchmarks():
    for path in (ROOT / "shared").glob("*.py"):
        assert not re.search(r"^\s*(from|import) (papers|benchmarks)", path.read_text("utf-8"), re.M), path


def test_weights_only():
    for path in [*ROOT.glob("papers/**/*.py"), *ROOT.glob("shared/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        for call in re.findall(r"torch\.load\([^\n]*", path.read_text("utf-8")):
            assert "weights_only=True" in call, f"{path}: {call}"


def test_ledger_holds_no_smoke_result_and_valid_json():
    for path in ledger.RESULTS.glob("*/*.json"):
        result = json.loads(path.read_text("utf-8"))
        assert result["profile"] != "smoke"
        assert path == ledger.result_path(result["slug"], result["dataset"], result["profile"])
