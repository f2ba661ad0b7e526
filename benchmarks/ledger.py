"""The ledger: one JSON file per paper, data set and profile under `benchmarks/results/`.

It holds every metric of every test case, so that verdicts and tables are computed from it and never typed.
It also holds a digest of the code that produced it, which tells when a result has become older than its code.

A file starts with what fits a page (the head: provenance and verdicts), so that `make list` need not read the rest.
Then come the names of all columns and of all cases, once, and a row of numbers per variant, seed and case.
"""

import ast
import functools
import hashlib
import json
import math
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from shared.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STRONGEST = ("paper", "study", "cpu", "smoke")
NUMBERS = ("columns", "case_names", "results", "lengths", "curves")
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
NOT_DECIDABLE, NOT_RUN = "not decidable here", "not run in this profile"


# --- paper.toml ------------------------------------------------------------------------------------------


def slugs() -> list[str]:
    """Names of all papers: the folders of `papers/` that hold a paper.toml."""
    return sorted(path.parent.name for path in (ROOT / "papers").glob("*/paper.toml"))


def load_paper(slug: str) -> dict:
    """The contents of `papers/<slug>/paper.toml`, with each `[[variant]]`, `[[metric]]` and `[[claim]]` that has `each`
    written out."""
    with (ROOT / "papers" / slug / "paper.toml").open("rb") as file:
        paper = tomllib.load(file)
    for kind in ("variant", "metric", "claim"):
        paper[kind] = [one for entry in paper.get(kind, []) for one in written_out(entry)]
    return paper


def load_paper_head(slug: str) -> dict:
    """The keys of a paper.toml before its first table: name, task, modality and so on. Much faster than all of it."""
    text = (ROOT / "papers" / slug / "paper.toml").read_text("utf-8")
    end = text.find("\n[")
    try:
        return tomllib.loads(text[: end + 1] if end >= 0 else text)
    except tomllib.TOMLDecodeError:  # a line within a text starts with a bracket
        return tomllib.loads(text)


def written_out(entry: dict) -> list[dict]:
    """One entry per table in its `each`, with that table's names in braces replaced in all its texts.

    A text that is nothing but a name in braces becomes the value itself, so a number stays one.

    >>> written_out({"id": "C1-{d}", "margin": "{m}", "each": [{"d": "eye", "m": 2.0}, {"d": "skin", "m": 1.0}]})
    [{'id': 'C1-eye', 'margin': 2.0}, {'id': 'C1-skin', 'margin': 1.0}]
    """
    if "each" not in entry:
        return [entry]

    def replaced(value, names: dict):
        if isinstance(value, str):
            for name, new in names.items():
                if value == f"{{{name}}}":
                    return new
                value = value.replace(f"{{{name}}}", str(new))
            return value
        if isinstance(value, dict):
            return {replaced(key, names): replaced(one, names) for key, one in value.items()}
        return [replaced(one, names) for one in value] if isinstance(value, list) else value

    rest = {key: value for key, value in entry.items() if key != "each"}
    return [replaced(rest, names) for names in entry["each"]]


def claims_for(paper: dict, dataset: str) -> list[dict]:
    """The claims that speak about a data set: those without `datasets`, or that name it.

    Where `decidable` is a table of patterns of data sets with reasons, each claim keeps what speaks about this one.
    """
    return [
        _on(claim, dataset)
        for claim in paper["claim"]
        if any(fnmatch(dataset, pattern) for pattern in claim.get("datasets", ["*"]))
    ]


def _on(claim: dict, dataset: str) -> dict:
    """
    >>> claim = {"id": "C1", "decidable": {"standin": "a threshold is as good"}}
    >>> _on(claim, "standin"), _on(claim, "BraTS")
    ({'id': 'C1', 'decidable': 'a threshold is as good'}, {'id': 'C1'})
    """
    if not isinstance(claim.get("decidable"), dict):
        return claim
    reasons = [why for pattern, why in claim["decidable"].items() if fnmatch(dataset, pattern)]
    rest = {key: value for key, value in claim.items() if key != "decidable"}
    return {**rest, "decidable": reasons[0]} if reasons else rest


def controls_of(paper: dict) -> set[str]:
    """Ids of the controls: claims that others name in `requires`. They are not claims of the paper and don't count."""
    return {name for claim in paper["claim"] for name in claim.get("requires", [])}


def headline(paper: dict, dataset: str) -> dict | None:
    """The claim that stands for the paper on a data set.

    `headline` of `[study]` names it, or several of which the first that speaks about the data set is taken. Without it,
    the first `order` or `best` that can be decided and is no control. None where there is none.
    """
    claims = {claim["id"]: claim for claim in claims_for(paper, dataset)}
    named = paper.get("study", {}).get("headline")
    if named is not None:
        return next((claims[name] for name in ([named] if isinstance(named, str) else named) if name in claims), None)
    controls = controls_of(paper)
    for name, claim in claims.items():
        if claim["kind"] in ("order", "best") and name not in controls and "decidable" not in claim:
            return claim
    return None


def curved(paper: dict, dataset: str) -> list[dict]:
    """The claims whose variants `study` trains at other lengths, too: the headline first, then those that `curves` of
    `[study]` names; none where the data set has no headline."""
    main = headline(paper, dataset)
    if main is None:
        return []
    named = paper.get("study", {}).get("curves", [])
    return [main, *(c for c in claims_for(paper, dataset) if c["id"] in named and c["id"] != main["id"])]


def trains(paper: dict, name: str) -> bool:
    """Whether the numbers of a variant come out of a training, its own or one that it needs."""
    variant = next(variant for variant in paper["variant"] if variant["name"] == name)
    return variant["role"] != "input" or bool(variant.get("needs") and trains(paper, variant["needs"]))


def is_own(paper: dict, dataset: str) -> bool:
    """Whether a data set in the ledger is one of the paper's own (`own` in paper.toml), as it used it."""
    return any(fnmatch(dataset, pattern) for pattern in paper.get("own", []))


# --- the code that a result comes from -------------------------------------------------------------------


class _OnlyWhatItDoes(ast.NodeTransformer):
    """Leaves out docstrings and imports, and where in `shared/` a function lies: `gpu.gather` becomes `gather`."""

    def __init__(self, tree: ast.AST):
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "shared"]
        self.modules = {alias.asname or alias.name for node in imports for alias in node.names}

    def visit_Import(self, node: ast.Import) -> None:
        return None

    visit_ImportFrom = visit_Import

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id in self.modules:
            return ast.Name(node.attr, node.ctx)
        return self.generic_visit(node)


@functools.cache
def _what_it_does(text: str) -> str:
    tree = ast.parse(text)
    return ast.dump(_OnlyWhatItDoes(tree).visit(tree))


def digest_of_code(files: list[Path]) -> str:
    """Digest of the syntax trees of Python files: comments, docstrings, layout and imports don't count, and neither
    does the module of `shared/` that a name comes from. So what only moved is the same code."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}\n{_what_it_does(path.read_text('utf-8'))}\n".encode())
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


# --- results ---------------------------------------------------------------------------------------------


def result_path(slug: str, dataset: str, profile: str) -> Path:
    return RESULTS / slug / f"{dataset}-{profile}.json"


def _in_order(results: list[dict]) -> list[dict]:
    """The stand-in first, then real data by name; of one data set the strongest profile first."""

    def key(result: dict) -> tuple:
        return not result["standin"], result["dataset"], STRONGEST.index(result["profile"])

    return sorted(results, key=key)


def results_of(slug: str) -> list[dict]:
    """All results of a paper in the ledger: the stand-in first, then real data by name, the strongest profile first."""
    return _in_order([read_result(path) for path in (RESULTS / slug).glob("*.json")])


def heads_of(slug: str) -> list[dict]:
    """The same without the numbers, which is much faster."""
    return _in_order([read_head(path) for path in (RESULTS / slug).glob("*.json")])


def strongest(results: list[dict]) -> list[dict]:
    """One result per data set: that of the strongest profile (`paper`, `study`, `cpu`)."""
    first: dict[str, dict] = {}
    for result in _in_order(results):
        first.setdefault(result["dataset"], result)
    return list(first.values())


def counts(result: dict) -> tuple[int, int, int]:
    """How many of the paper's claims are reproduced, not reproduced, inconclusive. Controls, what can't be decided and
    what the profile does not run are not counted."""
    words = [found["verdict"] for found in result["verdicts"].values() if not found.get("control")]
    return words.count(REPRODUCED), words.count(NOT_REPRODUCED), words.count(INCONCLUSIVE)


def short(value: float) -> float:
    """A number to 6 significant digits, a whole one as an integer.

    >>> short(1 / 3), short(5.0), short(1234567.0)
    (0.333333, 5, 1234570)
    """
    value = float(f"{value:.6g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value


def read_head(path: Path) -> dict:
    """A result without its numbers: all that stands before the columns in its file."""
    with Path(path).open(encoding="utf-8") as file:
        lines = []
        for line in file:
            if line.startswith(' "columns": '):
                return json.loads("".join(lines).rstrip().removesuffix(",") + "}")
            lines.append(line)
    return {key: value for key, value in json.loads("".join(lines)).items() if key not in NUMBERS}


def read_result(path: Path) -> dict:
    """A result that `write_result` wrote.

    Returns:
        the result; `results`, and the same in `lengths` where there is one, is variant -> seed -> case -> column ->
        value, where every row has every column of `columns`, None where it is empty.
    """
    result = json.loads(Path(path).read_text("utf-8"))
    cases = result.pop("case_names")

    def unpacked(tables: dict, columns: list[str]) -> dict:
        return {
            variant: {
                seed: {case: dict(zip(columns, row)) for case, row in zip(cases, rows) if row is not None}
                for seed, rows in by_seed.items()
            }
            for variant, by_seed in tables.items()
        }

    result["results"] = unpacked(result["results"], result["columns"])
    if "lengths" in result:
        lengths = result["lengths"]
        columns = lengths.pop("columns")
        lengths["results"] = {length: unpacked(tables, columns) for length, tables in lengths["results"].items()}
    return result


def _cell(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else short(value)


def _packed(tables: dict, columns: list[str], cases: list[str], indent: str) -> str:
    """`tables`, variant -> seed -> case -> column -> value, as JSON with a case per line, a list of numbers each."""
    variants = []
    for variant, by_seed in tables.items():
        seeds = []
        for seed, table in by_seed.items():
            rows = [[_cell(table[case].get(name)) for name in columns] if case in table else None for case in cases]
            lines = ",\n".join(f"{indent}  {json.dumps(row, separators=(',', ':'))}" for row in rows)
            seeds.append(f"{indent} {json.dumps(seed)}: [\n{lines}\n{indent} ]")
        variants.append(f"{indent}{json.dumps(variant)}: {{\n" + ",\n".join(seeds) + f"\n{indent}}}")
    return "{\n" + ",\n".join(variants) + f"\n{indent[1:]}}}"


def _curves(curves: dict) -> str:
    """variant -> seed -> columns and rows, as JSON with a run per line."""
    variants = []
    for variant, by_seed in curves.items():
        runs = []
        for seed, curve in by_seed.items():
            rows = [[_cell(value) for value in row] for row in curve["rows"]]
            line = json.dumps({"columns": curve["columns"], "rows": rows}, separators=(",", ":"))
            runs.append(f"   {json.dumps(seed)}: {line}")
        variants.append(f"  {json.dumps(variant)}: {{\n" + ",\n".join(runs) + "\n  }")
    return "{\n" + ",\n".join(variants) + "\n }"


def only_columns(results: dict, columns: list[str]) -> dict:
    """The same results with some columns only."""
    return {
        variant: {
            seed: {case: {name: row[name] for name in columns if name in row} for case, row in table.items()}
            for seed, table in by_seed.items()
        }
        for variant, by_seed in results.items()
    }


def _columns_of(results: dict) -> list[str]:
    rows = (row for by_seed in results.values() for table in by_seed.values() for row in table.values())
    return list(dict.fromkeys(column for row in rows for column in row))


def write_result(result: dict, path: Path) -> None:
    """Write a result, atomically, numbers to 6 significant digits and one test case per line, so that a diff is read.

    Of `curves` a run is a line. `lengths` needs the metrics of a few claims alone, see `only_columns`.

    Raises:
        ValueError: a smoke result on its way into the ledger.
    """
    path = Path(path)
    if result["profile"] == "smoke" and RESULTS in path.resolve().parents:
        raise ValueError("a smoke run shows that the code runs, nothing else: it can't enter the ledger")
    lengths = result.get("lengths")
    everything = [result["results"], *(lengths["results"].values() if lengths else ())]
    tables = [table for results in everything for by_seed in results.values() for table in by_seed.values()]
    cases = list(dict.fromkeys(case for table in tables for case in table))
    columns = _columns_of(result["results"])
    parts = [json.dumps({key: value for key, value in result.items() if key not in NUMBERS}, indent=1)[:-2]]
    parts.append(f' "columns": {json.dumps(columns)}')
    parts.append(f' "case_names": {json.dumps(cases)}')
    parts.append(f' "results": {_packed(result["results"], columns, cases, "  ")}')
    if lengths:
        kept = list(dict.fromkeys(name for tables in lengths["results"].values() for name in _columns_of(tables)))
        head = {**{key: value for key, value in lengths.items() if key != "results"}, "columns": kept}
        packed = [f"   {json.dumps(k)}: {_packed(v, kept, cases, '    ')}" for k, v in lengths["results"].items()]
        inner = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        inner.append('  "results": {\n' + ",\n".join(packed) + "\n  }")
        parts.append(' "lengths": {\n' + ",\n".join(inner) + "\n }")
    if result.get("curves"):
        parts.append(' "curves": ' + _curves(result["curves"]))
    text = ",\n".join(parts) + "\n}\n"
    json.loads(text)
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"))


def mean_of(result: dict, variant: str, metric: str, cases: str = "*") -> tuple[float, float] | None:
    """Mean and standard deviation over the cases (each averaged over its seeds) of one metric.

    None where the variant was not run or has no finite value. Values that are not finite are left out.
    """
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
