"""The ledger: one JSON file per paper, data set and profile under `benchmarks/results/`.

It holds every metric of every test case, so that verdicts and tables are computed from it and never typed.
It also holds a digest of the code that produced it, which tells when a result has become older than its code.
"""

import ast
import hashlib
import json
import tomllib
from pathlib import Path

from shared.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def slugs() -> list[str]:
    """Names of all papers: the folders of `papers/` that hold a paper.toml."""
    return sorted(path.parent.name for path in (ROOT / "papers").glob("*/paper.toml"))


def load_paper(slug: str) -> dict:
    """The contents of `papers/<slug>/paper.toml`."""
    with (ROOT / "papers" / slug / "paper.toml").open("rb") as file:
        return tomllib.load(file)


def headline(paper: dict, dataset: str) -> dict | None:
    """The headline claim for a data set: the first of `[study] headline` that speaks about it; None if none does."""
    from benchmarks.claims import claims_for

    wanted = paper.get("study", {}).get("headline", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    there = {claim["id"]: claim for claim in claims_for(paper, dataset)}
    return next((there[name] for name in wanted if name in there), None)


def verdicts_on_paper(paper: dict, result: dict) -> dict[str, str]:
    """Claim -> verdict, without the controls: claims that others name in `requires`."""
    controls = {name for claim in paper["claim"] for name in claim.get("requires", [])}
    return {name: found["verdict"] for name, found in result["verdicts"].items() if name not in controls}


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [item for item in body if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))]
            node.body = kept or [ast.Pass()]
    return tree


def digest_of_code(files: list[Path]) -> str:
    """Digest of the syntax trees of Python files: comments, docstrings and layout don't count."""
    digest = hashlib.sha256()
    for path in sorted(files):
        tree = _without_docstrings(ast.parse(path.read_text("utf-8")))
        digest.update(f"{path.name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def standin_files(slug: str) -> list[Path]:
    """The generator of a paper's stand-in and the simulators in `benchmarks/standins/` that it imports."""
    folder = ROOT / "benchmarks" / "standins"
    found, waiting = [], [folder / f"{slug}.py"]
    while waiting:
        path = waiting.pop()
        if path in found or not path.exists():
            continue
        found.append(path)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks.standins"):
                names = [node.module.rpartition(".")[2], *(alias.name for alias in node.names)]
                waiting += [folder / f"{name}.py" for name in names]
    return found


def paper_files(slug: str) -> list[Path]:
    """All Python files of a paper."""
    return sorted((ROOT / "papers" / slug).glob("*.py"))


def digest_of_paper(slug: str, standin: bool) -> str:
    """Digest of everything of its own that a paper's result depends on: its code, and the simulator's if it is one on
    the stand-in.

    `shared/` is left out: its behaviour is held fixed by its own tests against other libraries, and one
    line changed there would otherwise make the results of fifty papers look stale.
    """
    return digest_of_code(paper_files(slug) + (standin_files(slug) if standin else []))


def result_path(slug: str, dataset: str, profile: str) -> Path:
    return RESULTS / slug / f"{dataset}-{profile}.json"


def results_of(slug: str) -> list[dict]:
    """All results of a paper in the ledger: the stand-in first, then real data by name."""
    results = [read_result(path) for path in sorted((RESULTS / slug).glob("*.json"))]
    return sorted(results, key=lambda result: (not result["standin"], result["dataset"], result["profile"]))


def read_result(path: Path) -> dict:
    """A result that `write_result` wrote. Every row has every column of `result["columns"]`, None where it is empty."""
    result = json.loads(Path(path).read_text("utf-8"))
    for by_seed in result["results"].values():
        for cases in by_seed.values():
            for row in cases.values():
                for column in result.get("columns", ()):
                    row.setdefault(column, None)
    return result


def write_result(result: dict, path: Path) -> None:
    """Write a result, atomically and with one test case per line, so that a diff can be read. Empty cells are left out.

    Raises:
        ValueError: a smoke result on its way into the ledger.
    """
    path = Path(path)
    if result["profile"] == "smoke" and RESULTS in path.resolve().parents:
        raise ValueError("a smoke run shows that the code runs, nothing else: it can't enter the ledger")
    tables = [cases for by_seed in result["results"].values() for cases in by_seed.values()]
    columns = list(dict.fromkeys(column for cases in tables for row in cases.values() for column in row))
    text = json.dumps({**result, "columns": columns, "results": None}, indent=1)
    lines = []
    for variant, by_seed in result["results"].items():
        seeds = []
        for seed, cases in by_seed.items():
            filled = {case: {k: v for k, v in row.items() if v is not None} for case, row in cases.items()}
            rows = ",\n".join(f"    {json.dumps(case)}: {json.dumps(row)}" for case, row in filled.items())
            seeds.append(f"   {json.dumps(seed)}: {{\n{rows}\n   }}")
        lines.append(f"  {json.dumps(variant)}: {{\n" + ",\n".join(seeds) + "\n  }")
    text = text.replace('"results": null', '"results": {\n' + ",\n".join(lines) + "\n }")
    json.loads(text)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", "utf-8"))


def mean_of(result: dict, variant: str, metric: str, cases: str = "*") -> tuple[float, float] | None:
    """Mean and standard deviation over the cases (each averaged over its seeds) of one metric.

    None where the variant was not run or has no finite value. Values that are not finite are left out.
    """
    from fnmatch import fnmatch

    import numpy as np

    by_case: dict[str, list[float]] = {}
    for table in result["results"].get(variant, {}).values():
        for case, row in table.items():
            if row.get(metric) is not None and fnmatch(case, cases):
                by_case.setdefault(case, []).append(row[metric])
    if not by_case:
        return None
    means = np.array([np.mean(values) for values in by_case.values()])
    return float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else 0.0
