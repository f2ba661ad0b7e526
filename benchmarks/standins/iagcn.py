"""Stand-in data for IA-GCN: simulated patients in the layout of TADPOLE_D1_D2.csv, and patients without diagnosis."""

from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.standins.dementia_table import biomarkers, cognitive_tests, enrol, one_year_later
from shared.files import complete_or_absent, write_csv

COUNTS = {
    "smoke": (14, 24, 10),
    "cpu": (91, 182, 47),
    "study": (91, 182, 47),
    "paper": (160, 320, 84),
}  # normal, MCI, dementia
NEW = {"smoke": (2, 2, 2), "cpu": (7, 12, 5), "study": (7, 12, 5), "paper": (7, 12, 5)}
BASELINE = ("CN", "LMCI", "AD")
DIAGNOSIS = ("NL", "MCI", "Dementia")
SUFFIX = {
    "ST": "_UCSFFSX_11_02_15_UCSFFSX51_08_01_16",
    "FA_": "_DTIROI_04_30_14",
    **{name: "_UPENNBIOMK9_04_19_17" for name in ("ABETA", "TAU", "PTAU")},
}
# Share of people who lack a whole examination: columns that begin so.
ABSENT = {("FA_",): 0.4, ("AV45",): 0.3, ("FDG",): 0.2, ("ABETA", "TAU", "PTAU"): 0.3, ("MOCA",): 0.35}


def column_name(name: str) -> str:
    """A value's name in TADPOLE_D1_D2.csv: tables that were merged into it left their names and dates."""
    for start, suffix in SUFFIX.items():
        if name == start or (start in ("ST", "FA_") and name.startswith(start)):
            return name + suffix
    return name


def as_text(name: str, values: np.ndarray, missing: np.ndarray) -> list[str]:
    """A column as it is printed: empty where missing, limits of the CSF assay as '>1700' and '<200'."""
    texts = []
    for value, gone in zip(values.tolist(), missing.tolist()):
        if gone:
            texts.append("")
        elif name == "ABETA" and not 200 <= value <= 1700:
            texts.append(">1700" if value > 1700 else "<200")
        else:
            texts.append(f"{value:.7g}")
    return texts


def measured_columns(rng: np.random.Generator, scores: dict, values: dict, keep_regions: int) -> dict[str, list[str]]:
    """Columns of test scores and biomarkers, with examinations and single values that are missing.

    Args:
        keep_regions: keep each n-th FreeSurfer column; 1 keeps all.
    """
    n = len(scores["MMSE"])
    regions = [name for name in values if name.startswith("ST")]
    dropped = set(regions) - set(regions[::keep_regions])
    absent = {start: rng.random(n) < share for starts, share in ABSENT.items() for start in [starts]}
    columns = {}
    for name, column in {**scores, **values}.items():
        if name in dropped:
            continue
        missing = np.zeros(n, bool) if name in ("CDRSB", "MMSE") else rng.random(n) < 0.005
        for starts, gone in absent.items():
            missing |= gone if name.startswith(starts) else False
        columns[column_name(name)] = as_text(name, column, missing)
    return columns


def visit(rng, people, scores, values, rids, code: str, first: dict, keep_regions: int, diagnosis) -> list[dict]:
    """Rows of one visit of some people; `diagnosis` is (at baseline, now), or None for people without one."""
    columns = {
        "RID": [str(rid) for rid in rids],
        "VISCODE": [code] * len(rids),
        "DX_bl": [""] * len(rids) if diagnosis is None else [BASELINE[label] for label in diagnosis[0]],
        "DX": [""] * len(rids) if diagnosis is None else [DIAGNOSIS[label] for label in diagnosis[1]],
        "AGE": [f"{age:.1f}" for age in first["AGE"]],
        "PTGENDER": np.where(people.male, "Male", "Female").tolist(),
        "PTEDUCAT": [f"{years:.0f}" for years in people.education],
        "APOE4": [str(alleles) for alleles in people.apoe4],
        "CDRSB_bl": [f"{score:.7g}" for score in first["CDRSB"]],
        "MMSE_bl": [f"{score:.7g}" for score in first["MMSE"]],
        **measured_columns(rng, scores, values, keep_regions),
    }
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def generate(out: Path, seed: int = 0, size: Literal["smoke", "cpu", "study", "paper"] = "cpu") -> Path:
    """Write TADPOLE_D1_D2.csv (baseline of all, a visit a year later of some) and new_subjects.csv (baseline,
    no diagnosis) under `out`, which appears only when it is complete.

    Args:
        out: folder to create.
        seed: of everything random.
        size: smoke, cpu and study (the same data) or paper (564 people and 354 features).
    """
    rng = np.random.default_rng(seed)
    counts = tuple(a + b for a, b in zip(COUNTS[size], NEW[size]))
    people, scores, _, diagnosis = enrol(rng, counts)
    values = biomarkers(rng, people)
    keep_regions = 10 if size == "smoke" else 1
    new = np.concatenate([np.flatnonzero(diagnosis == label)[: NEW[size][label]] for label in range(3)])
    known = np.setdiff1d(np.arange(len(people)), new)
    first = {"AGE": people.age, "CDRSB": scores["CDRSB"], "MMSE": scores["MMSE"]}

    def rows(index: np.ndarray, who, tests, values, code: str, labels) -> list[dict]:
        tables = [{name: column[index] for name, column in table.items()} for table in (tests, values, first)]
        arguments = (rng, who.take(index), *tables[:2], index + 2, code, tables[2], keep_regions, labels)
        return visit(*arguments)

    table = rows(known, people, scores, values, "bl", (diagnosis[known], diagnosis[known]))
    later = one_year_later(people)
    later_scores, _ = cognitive_tests(rng, later)
    again = known[::3]
    labels = (diagnosis[again], diagnosis[again])
    table += rows(again, later, later_scores, biomarkers(rng, later), "m12", labels)
    table.sort(key=lambda row: int(row["RID"]))

    out = Path(out)
    with complete_or_absent(out) as unfinished:
        write_csv(unfinished / "TADPOLE_D1_D2.csv", table)
        write_csv(unfinished / "new_subjects.csv", rows(new, people, scores, values, "bl", None))
    return out
