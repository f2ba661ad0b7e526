"""Reads a table of subjects, in the layout of TADPOLE or a general one, and prepares it for each fold.

DATA/TADPOLE_D1_D2.csv    as it is downloaded; rows with VISCODE bl are used
or
DATA/features.csv         RID, then a column per feature
DATA/labels.csv           RID, DX
and with both, optionally
DATA/groups.csv           feature, modality: the columns to use; default for TADPOLE: `TADPOLE_FEATURES`, else all
DATA/folds.csv            RID, fold: numbers from 0
"""

import csv
import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from shared.errors import InputError

TADPOLE = "TADPOLE_D1_D2.csv"
CLASSES = ("normal", "MCI", "Alzheimer's")  # of TADPOLE
# Diagnoses of the visit (DX; the last word counts where it says "MCI to Dementia") and at baseline (DX_bl).
DIAGNOSES = {"NL": 0, "MCI": 1, "DEMENTIA": 2, "CN": 0, "SMC": 0, "EMCI": 1, "LMCI": 1, "AD": 2}
# Columns of TADPOLE_D1_D2.csv by modality, as regular expressions of whole names.
TADPOLE_FEATURES = {
    "cognitive": r"CDRSB|CDRSB_bl|MMSE|MMSE_bl|ADAS11|ADAS13|FAQ|MOCA|"
    r"RAVLT_(immediate|learning|forgetting|perc_forgetting)",
    "MRI": r"ST\d+(CV|SA|TA|TS|SV)_UCSFFSX_\w+",
    "PET": r"FDG|AV45",
    "DTI": r"FA_\w+_DTIROI_\w+",
    "CSF": r"(ABETA|TAU|PTAU)_UPENNBIOMK9_\w+",
    "demographics": r"AGE|PTGENDER|PTEDUCAT|APOE4",
}
MISSING = {"", "NA", "N/A", "NAN", "NULL"}
WORDS = {"MALE": 1.0, "FEMALE": 0.0}


@dataclass(frozen=True)
class Table:
    """Subjects with their features and labels."""

    source: Path
    """the file with the features"""
    rid: list[str]
    """identifier of each subject"""
    x: np.ndarray
    """(N, D) float64, NaN where a value is missing"""
    label: np.ndarray
    """(N,) int64, 0 to c - 1"""
    features: list[str]
    """names of the D columns"""
    modalities: list[str]
    """group of each column"""
    classes: tuple[str, ...]
    """names of the c classes"""
    age: np.ndarray
    """(N,) years, NaN where it is not known"""
    sex: np.ndarray
    """(N,) 1 male, 0 female, NaN where it is not known"""
    fold: dict[str, int] | None
    """fold of each subject, where the data set gives folds"""

    @property
    def digest(self) -> str:
        """Of the subjects and their labels: a checkpoint must be tested on the folds that it was trained with."""
        text = ";".join(f"{rid}:{label}" for rid, label in sorted(zip(self.rid, self.label.tolist())))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file.

    Raises:
        InputError: missing, empty, not text, or a row with fewer or more cells than the header (a truncated file).
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; expected a table as .csv")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path}: can't be read as a CSV table in UTF-8 ({error})") from error
    if len(rows) < 2:
        raise InputError(f"{path}: expected a header and at least one row, found {len(rows)} lines")
    header, rows = [name.strip() for name in rows[0]], rows[1:]
    twice = {name for name in header if header.count(name) > 1} if len(set(header)) < len(header) else set()
    if twice:
        raise InputError(f"{path}: has the column {sorted(twice)[0]!r} more than once; rename or remove one")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(
                f"{path}: row {number} has {len(row)} cells and the header {len(header)}; the file is truncated or "
                "has a stray comma"
            )
    return header, rows


def to_number(text: str, path: Path, rid: str, column: str) -> float:
    """A cell as a number; NaN where it is missing; limits of an assay ('>1700') as the limit.

    Raises:
        InputError: neither a finite number nor missing.
    """
    text = text.strip().upper()
    if text in MISSING:
        return math.nan
    if text in WORDS:
        return WORDS[text]
    try:
        value = float(text.lstrip("<>"))
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise InputError(
            f"{path}: column {column} of subject {rid} holds {text[:20]!r}; expected a finite number, or an empty cell "
            "where it is missing"
        )
    return value


def read_columns(path: Path, header: list[str], rows: list[list[str]], names: list[str]) -> np.ndarray:
    """(rows, names) float64 of some columns; a column that the file lacks is NaN throughout."""
    rid = header.index("RID")
    places = [header.index(name) if name in header else None for name in names]
    return np.array(
        [[math.nan if k is None else to_number(row[k], path, row[rid], header[k]) for k in places] for row in rows],
        dtype=np.float64,
    ).reshape(len(rows), len(names))


def need_columns(path: Path, header: list[str], names: tuple[str, ...]) -> None:
    lacking = [name for name in names if name not in header]
    if lacking:
        raise InputError(f"{path}: has no column {', '.join(lacking)}; it has {', '.join(header[:6])}, ...")


def need_one_row_each(path: Path, rids: list[str]) -> None:
    if len(set(rids)) < len(rids):
        twice = next(rid for rid in rids if rids.count(rid) > 1)
        raise InputError(f"{path}: has more than one row of subject {twice}; expected one row per subject")


def diagnosis_of(row: list[str], header: list[str], path: Path) -> int | None:
    """Class of a row of TADPOLE by DX, else by DX_bl; None where both are empty."""
    for name in ("DX", "DX_bl"):
        text = row[header.index(name)].strip().upper() if name in header else ""
        if text not in MISSING:
            word = text.split(" TO ")[-1]
            if word not in DIAGNOSES:
                raise InputError(f"{path}: {name} holds {text!r}; expected one of {', '.join(DIAGNOSES)}")
            return DIAGNOSES[word]
    return None


def read_groups(path: Path, header: list[str], default: dict[str, str]) -> dict[str, str]:
    """Feature -> modality, of groups.csv or else of the patterns in `default`."""
    if path.exists():
        found, rows = read_rows(path)
        need_columns(path, found, ("feature", "modality"))
        groups = {row[found.index("feature")].strip(): row[found.index("modality")].strip() for row in rows}
        need_columns(path.parent, header, tuple(groups))
        return groups
    groups = {}
    for name in header:
        for modality, pattern in default.items():
            if re.fullmatch(pattern, name):
                groups[name] = modality
    return groups


def read_folds(path: Path) -> dict[str, int] | None:
    """RID -> fold of folds.csv, if it is there."""
    if not path.exists():
        return None
    header, rows = read_rows(path)
    need_columns(path, header, ("RID", "fold"))
    values = read_columns(path, header, rows, ["fold"])[:, 0]
    if not np.isfinite(values).all() or (values != np.round(values)).any() or values.min() < 0:
        raise InputError(f"{path}: expected whole numbers from 0 as folds")
    return {row[header.index("RID")].strip(): int(fold) for row, fold in zip(rows, values)}


def read_table(root: Path, exclude: tuple[str, ...] = (), max_missing: float = 0.5) -> Table:
    """The table of a data set.

    Args:
        root: folder of the data set.
        exclude: modalities to leave out.
        max_missing: subjects who lack a larger share of the features are left out.

    Raises:
        InputError: files are missing or broken, a modality is not there, or too little is left.
    """
    root = Path(root)
    if (root / TADPOLE).exists():
        path = root / TADPOLE
        header, rows = read_rows(path)
        need_columns(path, header, ("RID", "VISCODE"))
        rows = [row for row in rows if row[header.index("VISCODE")].strip() == "bl"]
        groups = read_groups(root / "groups.csv", header, TADPOLE_FEATURES)
        labels = [diagnosis_of(row, header, path) for row in rows]
        classes = CLASSES
    elif (root / "features.csv").exists():
        path = root / "features.csv"
        header, rows = read_rows(path)
        need_columns(path, header, ("RID",))
        groups = read_groups(root / "groups.csv", header, {"feature": r"(?!RID$).*"})
        of_subject, classes = read_labels(root / "labels.csv")
        labels = [of_subject.get(row[header.index("RID")].strip()) for row in rows]
    else:
        raise InputError(f"{root}: expected {TADPOLE}, or features.csv and labels.csv; is this the data set's folder?")
    unknown = set(exclude) - set(groups.values())
    if unknown:
        raise InputError(f"{path}: has no features of {', '.join(sorted(unknown))} to leave out")
    features = [name for name in header if name in groups and groups[name] not in exclude]
    if len(features) < 2:
        raise InputError(f"{path}: expected at least two feature columns, found {features}; see groups.csv")
    need_one_row_each(path, [row[header.index("RID")].strip() for row in rows])
    x, extra = (read_columns(path, header, rows, names) for names in (features, ["AGE", "PTGENDER"]))
    keep = [k for k in range(len(rows)) if labels[k] is not None and np.isnan(x[k]).mean() <= max_missing]
    counts = np.bincount([labels[k] for k in keep], minlength=len(classes))
    if len(keep) == 0 or counts.min() < 2:
        raise InputError(
            f"{path}: expected at least two subjects of each class with a diagnosis and at most {max_missing:.0%} of "
            f"the features missing, found {dict(zip(classes, counts.tolist()))}"
        )
    return Table(
        source=path,
        rid=[rows[k][header.index("RID")].strip() for k in keep],
        x=x[keep],
        label=np.array([labels[k] for k in keep], dtype=np.int64),
        features=features,
        modalities=[groups[name] for name in features],
        classes=classes,
        age=extra[keep, 0],
        sex=extra[keep, 1],
        fold=read_folds(root / "folds.csv"),
    )


def read_labels(path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """RID -> class of labels.csv, and the classes' names in alphabetical (or numerical) order."""
    header, rows = read_rows(path)
    need_columns(path, header, ("RID", "DX"))
    texts = {row[header.index("RID")].strip(): row[header.index("DX")].strip() for row in rows}
    need_one_row_each(path, [row[header.index("RID")].strip() for row in rows])
    texts = {rid: text for rid, text in texts.items() if text.upper() not in MISSING}
    names = sorted(set(texts.values()), key=lambda text: (0, float(text), "") if is_number(text) else (1, 0.0, text))
    if len(names) < 2:
        raise InputError(f"{path}: expected at least two classes in DX, found {names}")
    return {rid: names.index(text) for rid, text in texts.items()}, tuple(names)


def is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def read_new_subjects(path: Path, features: list[str], impute_missing: bool) -> tuple[list[str], np.ndarray]:
    """Identifiers and features (n, D) of subjects without a diagnosis.

    Args:
        path: .csv with RID and the features of the network, a row per subject.
        impute_missing: accept columns that are not there as missing.

    Raises:
        InputError: missing, broken, two rows of one subject, or features that are not there.
    """
    header, rows = read_rows(path)
    need_columns(path, header, ("RID",))
    rids = [row[header.index("RID")].strip() for row in rows]
    need_one_row_each(path, rids)
    lacking = [name for name in features if name not in header]
    if len(lacking) == len(features) or (lacking and not impute_missing):
        raise InputError(
            f"{path}: lacks {len(lacking)} of the network's {len(features)} features ({', '.join(lacking[:4])}, ...); "
            "add them, or take the training mean for them with --impute-missing"
        )
    return rids, read_columns(path, header, rows, features)


def assign_folds(table: Table, folds: int) -> np.ndarray:
    """Fold (N,) in which each subject is tested: that of folds.csv, or each class dealt out in random order.

    The deal is the same for all methods and seeds.

    Raises:
        InputError: folds.csv names other folds or lacks a subject, or a class is too small.
    """
    if table.fold is not None:
        lacking = [rid for rid in table.rid if rid not in table.fold]
        if lacking:
            raise InputError(f"{table.source.parent / 'folds.csv'}: has no fold for subject {lacking[0]}")
        fold = np.array([table.fold[rid] for rid in table.rid])
        if set(fold.tolist()) != set(range(folds)):
            raise InputError(
                f"{table.source.parent / 'folds.csv'}: expected folds 0 to {folds - 1}, found "
                f"{sorted(set(fold.tolist()))}; --folds and --batch-size set their number"
            )
        return fold
    smallest = np.bincount(table.label).min()
    if smallest < folds:
        raise InputError(f"{table.source}: its smallest class has {smallest} subjects, too few for {folds} folds")
    rng, fold, dealt = np.random.default_rng(0), np.zeros(len(table.rid), dtype=np.int64), 0
    for label in range(len(table.classes)):
        members = rng.permutation(np.flatnonzero(table.label == label))
        fold[members] = (dealt + np.arange(len(members))) % folds
        dealt += len(members)
    return fold


class Preparation:
    """How the table becomes each fold's input: which columns, and their mean and scatter in its training subjects.

    Part of the checkpoint.
    """

    def __init__(self, table: Table, folds: int):
        self.state = {
            "features": list(table.features),
            "modalities": list(table.modalities),
            "classes": list(table.classes),
            "subjects": table.digest,
            "mean": torch.zeros(folds, len(table.features), dtype=torch.float64),
            "scatter": torch.ones(folds, len(table.features), dtype=torch.float64),
            "columns": torch.arange(len(table.features)).expand(folds, -1).clone(),
        }

    def state_dict(self) -> dict:
        return dict(self.state)

    def load_state_dict(self, state: dict) -> None:
        self.state = dict(state)

    def fit(self, x: np.ndarray, fold: int) -> None:
        """Mean and standard deviation of the training subjects x (n, D); 0 and 1 where no value, or one, is known."""
        known = np.isfinite(x)
        count = np.maximum(known.sum(0), 1)
        mean = np.where(known, x, 0).sum(0) / count
        scatter = np.sqrt(np.where(known, (x - mean) ** 2, 0).sum(0) / count)
        self.state["mean"][fold] = torch.from_numpy(mean)
        self.state["scatter"][fold] = torch.from_numpy(np.where(scatter > 1e-12 * np.abs(mean), scatter, 1.0))

    def standardise(self, x: np.ndarray, fold: int) -> Tensor:
        """(n, D) with NaN -> (n, D) float32 of all features; a missing value becomes the mean, that is 0."""
        scaled = (torch.from_numpy(x) - self.state["mean"][fold]) / self.state["scatter"][fold]
        return torch.nan_to_num(scaled, nan=0.0).float()

    def inputs(self, x: np.ndarray, fold: int) -> Tensor:
        """The same, of the columns that the fold's network sees: (n, k)."""
        return self.standardise(x, fold)[:, self.state["columns"][fold]]

    def names(self, fold: int) -> list[str]:
        """Names of those columns."""
        return [self.state["features"][k] for k in self.state["columns"][fold].tolist()]


class Folds(Dataset):
    """The numbers of the folds, which is what a batch holds; all else lies on the device already."""

    def __init__(self, folds: int):
        self.folds = folds

    def __len__(self) -> int:
        return self.folds

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.folds:
            raise IndexError(index)
        return {"fold": index}
