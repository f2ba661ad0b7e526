"""Readers of VQA-RAD, SLAKE, VQA-Med-2019 and MELINDA as published, and of captions for the stand-in backbone.

All become lists of `Question`; a MELINDA caption is the text and its method the answer.
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from shared.errors import InputError
from shared.files import inside, refuse_duplicates, refuse_overlap
from shared.text_files import read_csv_rows, read_json, read_text

LAYOUTS = ("vqa_rad", "slake", "medvqa_2019", "melinda")
FOLDERS = {"slake": ("slake", "slack", "Slake1.0")}  # of a layout inside the data folder, beside its own name
SPLITS = ("train", "val", "test")
MED19_CATEGORIES = ("Modality", "Organ", "Plane", "Abnormality")
HELD_OUT = 0.1  # share of the training images that validate where a data set has no validation part


@dataclass(frozen=True)
class Question:
    """One question (or caption) about one image."""

    case: str
    """name, "kind/number": the kind is open or closed, the category of VQA-Med, or melinda"""
    image: Path
    text: str
    answer: str
    """normalised, see `normalise_answer`"""


def normalise_answer(answer: object) -> str:
    """Lower case, single spaces, no full stop at the end.

    >>> normalise_answer(" The  Left lung. ")
    'the left lung'
    """
    return re.sub(r"\s+", " ", str(answer)).strip().lower().rstrip(".").strip()


# --- the four layouts ------------------------------------------------------------------------------------


def find_layout(root: str | Path, layout: str = "auto") -> tuple[str, Path]:
    """The layout of a data folder and where its files begin.

    Args:
        root: the folder of the data set, or one that holds it as vqa_rad/, slake/ or slack/, medvqa_2019/, melinda/.
        layout: one of LAYOUTS, or auto: the first of them that is there.

    Raises:
        InputError: no such folder, an unknown layout, or none found.
    """
    root = Path(root)
    if layout not in ("auto", *LAYOUTS):
        raise InputError(f"there is no layout '{layout}': choose auto or one of {', '.join(LAYOUTS)}")
    if not root.is_dir():
        raise InputError(f"{root} does not exist; it should be the folder of VQA-RAD, SLAKE, VQA-Med-2019 or MELINDA")
    marks = {"vqa_rad": "trainset.json", "slake": "train.json", "medvqa_2019": "train/QA", "melinda": "train.csv"}
    for name in LAYOUTS if layout == "auto" else (layout,):
        for folder in (root, *(root / inner for inner in FOLDERS.get(name, (name,)))):
            if (folder / marks[name]).exists():
                return name, folder
    wanted = " or ".join(f"{marks[name]} ({name})" for name in (LAYOUTS if layout == "auto" else (layout,)))
    raise InputError(f"{root} holds no data set of this paper: expected {wanted} there or in a folder of that name")


def read_questions(root: str | Path, layout: str = "auto") -> dict[str, list[Question]]:
    """Questions of "train", "val" and "test". VQA-RAD has no validation part; every tenth training image becomes one.

    Raises:
        InputError: a file is missing or broken, an entry lacks a field, a part is empty, or a question has the number
            of another one, be it of another part.
    """
    name, folder = find_layout(root, layout)
    reader = {"vqa_rad": _vqa_rad, "slake": _slake, "medvqa_2019": _medvqa_2019, "melinda": _melinda}[name]
    parts = {split: reader(folder, split) for split in SPLITS}
    for split, questions in parts.items():
        if not questions and split != "val":
            raise InputError(f"{folder} has no questions in its {split} part")
        refuse_duplicates([question.case for question in questions], f"{folder}: questions of the {split} part")
    if name in ("vqa_rad", "slake"):  # their numbers are those of the whole set
        for one, other in itertools.combinations(SPLITS, 2):
            numbers = ([question.case.partition("/")[2] for question in parts[split]] for split in (one, other))
            refuse_overlap(*numbers, f"{folder}: numbers of the questions in {one} and {other}")
    if not parts["val"]:
        images = sorted({question.image for question in parts["train"]})
        step = max(2, round(1 / HELD_OUT))
        held_out = set(images[step - 1 :: step]) or set(images[-1:])
        parts["val"] = [question for question in parts["train"] if question.image in held_out]
        parts["train"] = [question for question in parts["train"] if question.image not in held_out]
        if not parts["train"]:
            raise InputError(f"{folder}: all its training questions are about one image; none is left to validate on")
    return parts


def _text(entry: dict, name: str, path: Path, number: int) -> str:
    """A field as text: a word or a number."""
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        found = "has no" if value is None else "has a wrong or empty"
        raise InputError(f"{path}: entry {number} {found} '{name}'; expected a text")
    return str(value)


def _from_json(path: Path, image_of: str, images: Path) -> list[Question]:
    """VQA-RAD and SLAKE: `qid`, the image's name, `question`, `answer`, `answer_type`, and SLAKE's `q_lang`."""
    questions = []
    for number, entry in enumerate(read_json(path, "the published list of questions", list)):
        if not isinstance(entry, dict):
            raise InputError(f"{path}: entry {number} is no object; expected a question with its fields")
        if entry.get("q_lang", "en") != "en":
            continue
        qid, image, text, answer, kind = (
            _text(entry, name, path, number) for name in ("qid", image_of, "question", "answer", "answer_type")
        )
        kind = kind.strip().lower()
        if kind not in ("open", "closed"):
            raise InputError(f"{path}: entry {number} has the answer_type '{kind}', expected OPEN or CLOSED")
        questions.append(Question(f"{kind}/{qid}", inside(images, image), text, normalise_answer(answer)))
    return questions


def _vqa_rad(folder: Path, split: str) -> list[Question]:
    path = folder / f"{split}set.json"
    if split == "val" and not path.exists():
        return []
    return _from_json(path, "image_name", folder / "images")


def _slake(folder: Path, split: str) -> list[Question]:
    return _from_json(folder / f"{'validate' if split == 'val' else split}.json", "img_name", folder / "imgs")


def _medvqa_2019(folder: Path, split: str) -> list[Question]:
    questions = []
    for category in MED19_CATEGORIES:
        path = folder / split / "QA" / f"{category}.csv"
        lines = read_text(path, "lines of image|question|answer").splitlines()
        for number, line in enumerate(line for line in lines if line.strip()):
            cells = line.split("|")
            if len(cells) != 3 or not all(cell.strip() for cell in cells):
                raise InputError(f"{path}: line {number + 1} is not image|question|answer")
            image = inside(folder / split / "images", cells[0] if "." in cells[0] else f"{cells[0]}.jpg")
            kind = "abnormal" if category == "Abnormality" else category.lower()
            questions.append(Question(f"{kind}/{number}", image, cells[1], normalise_answer(cells[2])))
    return questions


def _melinda(folder: Path, split: str) -> list[Question]:
    path = folder / f"{'dev' if split == 'val' else split}.csv"
    columns = ("figure_file", "caption", "p_meth_label")
    questions = []
    for number, row in enumerate(read_csv_rows(path, columns)):
        image, text, label = (_text(row, name, path, number) for name in columns)
        picture = inside(folder / "melinda_images", image)
        questions.append(Question(f"melinda/{number}", picture, text, normalise_answer(label)))
    return questions


def answer_list(parts: dict[str, list[Question]], source: str) -> list[str]:
    """Answers of the closed list: of "train" questions only, or of "all" parts as the released M3AE has it."""
    used = SPLITS if source == "all" else ("train",)
    return sorted({question.answer for split in used for question in parts[split]})


# --- captions --------------------------------------------------------------------------------------------


def read_captions(root: str | Path, layout: str = "auto") -> list[Question]:
    """Image and text pairs that the stand-in backbone is pre-trained on.

    They are `pretrain/captions.txt`, lines of image|caption with the images in `pretrain/images`. A published data
    set has no such folder; then the training questions with their answers are the captions.

    Raises:
        InputError: a broken line, or as `read_questions`.
    """
    folder = Path(root) / "pretrain"
    if not folder.exists():
        questions = read_questions(root, layout)["train"]
        return [
            Question(f"caption/{number}", q.image, f"{q.text} {q.answer}", "") for number, q in enumerate(questions)
        ]
    path = folder / "captions.txt"
    captions = []
    for number, line in enumerate(read_text(path, "lines of image|caption").splitlines()):
        if not line.strip():
            continue
        image, _, text = (part.strip() for part in line.partition("|"))
        if not image or not text:
            raise InputError(f"{path}: line {number + 1} is not image|caption")
        captions.append(Question(f"caption/{len(captions)}", inside(folder / "images", image), text, ""))
    if not captions:
        raise InputError(f"{path} is empty: expected lines of image|caption")
    return captions


def split_captions(captions: list[Question]) -> tuple[list[Question], list[Question]]:
    """Captions to train on and, by image, every tenth to test the stand-in backbone on."""
    images = sorted({caption.image for caption in captions})
    held_out = set(images[9::10])
    return [c for c in captions if c.image not in held_out], [c for c in captions if c.image in held_out]
