"""Reads a table of subjects, in the layout of TADPOLE or a general one.

DATA/TADPOLE_D1_D2.csv    as it is downloaded; rows with VISCODE bl are used
or
DATA/features.csv         RID, then a column per feature
DATA/labels.csv           RID, DX
and with both, optionally
DATA/groups.csv           feature, modality: the columns to use; default for TADPOLE: `TADPOLE_FEATURES`, else all
DATA/folds.csv            RID, fold: numbers from 0
"""

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import InputError
from shared.files import refuse_duplicates
from shared.text_files import number, read_csv_rows, read_csv_table

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
LARGEST = 1e12  # no measurement of a person has a larger number, and its square would leave float32


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


def to_number(text: str, path: Path, rid: str, column: str) -> float:
    """A cell as a number; NaN where it is missing; limits of an assay ('>1700') as the limit.

    Raises:
        InputError: neither a finite number of ordinary size nor missing.
    """
    text = text.strip().upper()
    if text in MISSING:
        return math.nan
    if text in WORDS:
        return WORDS[text]
    what = f"{path}: column {column} of subject {rid}, which is empty where it is missing"
    value = number(text.lstrip("<>"), what)
    if abs(value) > LARGEST:
        raise InputError(f"{what}: expected numbers up to {LARGEST:g}, found {text[:40]}")
    return value


def read_columns(path: Path, header: list[str], rows: list[list[str]], names: list[str]) -> np.ndarray:
    """(rows, names) float64 of some columns; a column that the file lacks is NaN throughout."""
    rid = header.index("RID")
    places = [header.index(name) if name in header else None for name in names]
    return np.array(
        [[math.nan if k is None else to_number(row[k], path, row[rid], header[k]) for k in places] for row in rows],
        dtype=np.float64,
    ).reshape(len(rows), len(names))


def rids_of(path: Path, header: list[str], rows: list[list[str]]) -> list[str]:
    """Identifiers of the rows.

    Raises:
        InputError: one is empty, or comes twice.
    """
    rids = [row[header.index("RID")].strip() for row in rows]
    if "" in rids:
        raise InputError(f"{path}: row {rids.index('') + 1} has no RID, the identifier of its subject")
    refuse_duplicates(rids, f"{path}: subjects")
    return rids


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
        rows = read_csv_rows(path, ("feature", "modality"))
        refuse_duplicates([row["feature"].strip() for row in rows], f"{path}: features")
        groups = {row["feature"].strip(): row["modality"].strip() for row in rows}
        lacking = [name for name in groups if name not in header]
        if lacking:
            raise InputError(f"{path}: names the feature {lacking[0]}, which is no column of the table")
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
    header, rows = read_csv_table(path, ("RID", "fold"))
    values = read_columns(path, header, rows, ["fold"])[:, 0]
    if not np.isfinite(values).all() or (values != np.round(values)).any() or values.min() < 0:
        raise InputError(f"{path}: expected whole numbers from 0 as folds")
    return dict(zip(rids_of(path, header, rows), values.astype(int).tolist()))


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
        header, rows = read_csv_table(path, ("RID", "VISCODE"))
        rows = [row for row in rows if row[header.index("VISCODE")].strip() == "bl"]
        groups = read_groups(root / "groups.csv", header, TADPOLE_FEATURES)
        labels = [diagnosis_of(row, header, path) for row in rows]
        classes = CLASSES
    elif (root / "features.csv").exists():
        path = root / "features.csv"
        header, rows = read_csv_table(path, ("RID",))
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
    rids = rids_of(path, header, rows)
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
        rid=[rids[k] for k in keep],
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
    header, rows = read_csv_table(path, ("RID", "DX"))
    texts = dict(zip(rids_of(path, header, rows), [row[header.index("DX")].strip() for row in rows]))
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
    header, rows = read_csv_table(path, ("RID",))
    rids = rids_of(path, header, rows)
    lacking = [name for name in features if name not in header]
    if len(lacking) == len(features) or (lacking and not impute_missing):
        raise InputError(
            f"{path}: lacks {len(lacking)} of the network's {len(features)} features ({', '.join(lacking[:4])}, ...); "
            "add them, or take the training mean for them with --impute-missing"
        )
    return rids, read_columns(path, header, rows, features)
