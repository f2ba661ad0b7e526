"""Readers of VQA-RAD, SLAKE, VQA-Med-2019 and MELINDA as published, and of captions for the stand-in backbone.

All become lists of `Question`; a MELINDA caption is the text and its method the answer.
"""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.m3ad.vocabulary import PAD, Vocabulary
from shared.errors import InputError

LAYOUTS = ("vqa_rad", "slake", "medvqa_2019", "melinda")
FOLDERS = {"slake": ("slake", "slack", "Slake1.0")}  # of a layout inside the data folder, beside its own name
SPLITS = ("train", "val", "test")
MED19_CATEGORIES = ("Modality", "Organ", "Plane", "Abnormality")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
HELD_OUT = 0.1  # share of the training images that validate where a data set has no validation part
KEPT_PIXELS = 3e8  # images are kept in memory up to this many pixels together
SPECIAL_TOKENS = (0, PAD, 2)  # start, padding and end are never masked


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
    """Questions of "train", "val" and "test". Without a validation part every tenth training image becomes one.

    Raises:
        InputError: a file is missing or broken, an entry lacks a field, or a part is empty.
    """
    name, folder = find_layout(root, layout)
    reader = {"vqa_rad": _vqa_rad, "slake": _slake, "medvqa_2019": _medvqa_2019, "melinda": _melinda}[name]
    parts = {split: reader(folder, split) for split in SPLITS}
    for split in ("train", "test"):
        if not parts[split]:
            raise InputError(f"{folder} has no questions in its {split} part")
    if not parts["val"]:
        images = sorted({question.image for question in parts["train"]})
        step = max(2, round(1 / HELD_OUT))
        held_out = set(images[step - 1 :: step]) or set(images[-1:])
        parts["val"] = [question for question in parts["train"] if question.image in held_out]
        parts["train"] = [question for question in parts["train"] if question.image not in held_out]
    for split, questions in parts.items():
        cases = [question.case for question in questions]
        if len(set(cases)) < len(cases):  # numbers that a file uses twice
            parts[split] = [replace(q, case=f"{q.case}-{k}") for k, q in enumerate(questions)]
    return parts


def _json(path: Path) -> list[dict]:
    try:
        entries = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable as JSON: it is truncated or not the published file") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: expected a list of questions, each with its fields")
    return entries


def _field(entry: dict, name: str, path: Path, number: int) -> str:
    if entry.get(name) is None:
        raise InputError(f"{path}: entry {number} has no '{name}'")
    return str(entry[name])


def _kind(entry: dict, path: Path, number: int) -> str:
    kind = _field(entry, "answer_type", path, number).strip().lower()
    if kind not in ("open", "closed"):
        raise InputError(f"{path}: entry {number} has the answer_type '{kind}', expected OPEN or CLOSED")
    return kind


def _from_json(path: Path, number_of: str, image_of: str, images: Path) -> list[Question]:
    questions = []
    for number, entry in enumerate(_json(path)):
        if "q_lang" in entry and entry["q_lang"] != "en":
            continue
        text, answer = (_field(entry, name, path, number) for name in ("question", "answer"))
        case = f"{_kind(entry, path, number)}/{entry.get(number_of, number)}"
        image = images / _field(entry, image_of, path, number)
        questions.append(Question(case, image, text, normalise_answer(answer)))
    return questions


def _vqa_rad(folder: Path, split: str) -> list[Question]:
    path = folder / f"{split}set.json"
    if split == "val" and not path.exists():
        return []
    return _from_json(path, "qid", "image_name", folder / "images")


def _slake(folder: Path, split: str) -> list[Question]:
    path = folder / f"{'validate' if split == 'val' else split}.json"
    if split == "val" and not path.exists():
        return []
    return _from_json(path, "qid", "img_name", folder / "imgs")


def _medvqa_2019(folder: Path, split: str) -> list[Question]:
    questions = []
    if split == "val" and not (folder / split).exists():
        return []
    for category in MED19_CATEGORIES:
        path = folder / split / "QA" / f"{category}.csv"
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is missing or not readable; expected lines of image|question|answer") from error
        for number, line in enumerate(line for line in lines if line.strip()):
            cells = line.split("|")
            if len(cells) != 3:
                raise InputError(f"{path}: line {number + 1} has {len(cells)} cells, expected image|question|answer")
            image = folder / split / "images" / (cells[0] if "." in cells[0] else f"{cells[0]}.jpg")
            kind = "abnormal" if category == "Abnormality" else category.lower()
            questions.append(Question(f"{kind}/{number}", image, cells[1], normalise_answer(cells[2])))
    return questions


def _melinda(folder: Path, split: str) -> list[Question]:
    path = folder / f"{'dev' if split == 'val' else split}.csv"
    if split == "val" and not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is missing or not readable as a table") from error
    questions = []
    for number, row in enumerate(rows):
        image, text, label = (_field(row, name, path, number) for name in ("figure_file", "caption", "p_meth_label"))
        questions.append(
            Question(f"melinda/{number}", folder / "melinda_images" / image, text, normalise_answer(label))
        )
    return questions


def answer_list(parts: dict[str, list[Question]], source: str) -> list[str]:
    """Answers of the closed list: of "train" questions only, or of "all" parts as the released M3AE has it."""
    used = SPLITS if source == "all" else ("train",)
    return sorted({question.answer for split in used for question in parts[split]})


def read_captions(root: str | Path, layout: str = "auto") -> list[Question]:
    """Image and text pairs that the stand-in backbone is pre-trained on.

    They are `pretrain/captions.txt`, lines of image|caption with the images in `pretrain/images`. A published data
    set has none; then the training questions with their answers are the captions.

    Raises:
        InputError: a broken line, or as `read_questions`.
    """
    path = Path(root) / "pretrain" / "captions.txt"
    if not path.exists():
        questions = read_questions(root, layout)["train"]
        return [
            Question(f"caption/{number}", q.image, f"{q.text} {q.answer}", "") for number, q in enumerate(questions)
        ]
    captions = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as text") from error
    for number, line in enumerate(line for line in lines if line.strip()):
        image, separator, text = line.partition("|")
        if not separator:
            raise InputError(f"{path}: line {number + 1} is not image|caption")
        captions.append(Question(f"caption/{number}", path.parent / "images" / image.strip(), text.strip(), ""))
    if not captions:
        raise InputError(f"{path} is empty: expected lines of image|caption")
    return captions


def split_captions(captions: list[Question]) -> tuple[list[Question], list[Question]]:
    """Captions to train on and, by image, every tenth to test the stand-in backbone on."""
    images = sorted({caption.image for caption in captions})
    held_out = set(images[9::10])
    return [c for c in captions if c.image not in held_out], [c for c in captions if c.image in held_out]


# --- images ----------------------------------------------------------------------------------------------


def read_image(path: Path, size: int) -> np.ndarray:
    """(3, size, size) uint8: RGB, the whole image stretched to a square with antialiasing.

    Raises:
        InputError: missing, truncated or not an image.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such image")
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
            if pixels.dtype.kind != "u" or pixels.dtype.itemsize != 1:  # 16 bit: to its own range
                values = pixels.astype(np.float64)
                low, high = values.min(), values.max()
                image = Image.fromarray((255 * (values - low) / max(high - low, 1e-9)).astype(np.uint8))
            image = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
            return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not a readable image, it is truncated or of another format") from error


class Images:
    """Images by path at one size, kept in memory while they are few; all are looked at once, at the start.

    Raises:
        InputError: one of them is missing or broken.
    """

    def __init__(self, paths: Sequence[Path], size: int):
        self.size = size
        unique = sorted(set(paths))
        self._kept: dict[Path, np.ndarray] = {}
        if len(unique) * size * size <= KEPT_PIXELS:
            self._kept = {path: read_image(path, size) for path in unique}
        else:
            for path in unique:
                if not path.is_file():
                    raise InputError(f"{path}: there is no such image")

    def __call__(self, path: Path) -> np.ndarray:
        """(3, size, size) uint8."""
        return self._kept[path] if path in self._kept else read_image(path, self.size)


def normalise(image: np.ndarray) -> Tensor:
    """(3, H, W) uint8 to float with CLIP's mean and deviation."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_DEVIATION))
    return (torch.from_numpy(image).float() / 255 - mean) / deviation


def random_crop(image: Tensor, least: float) -> Tensor:
    """A random part of (3, H, W) with `least` to all of its area, resized back; `least` 1 leaves it as it is."""
    if least >= 1:
        return image
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms.functional import resized_crop

    box = RandomResizedCrop.get_params(image, [least, 1.0], [3 / 4, 4 / 3])
    return resized_crop(image, *box, list(image.shape[1:]), antialias=True)


class Questions(Dataset):
    """Items "image" (3, S, S), "tokens" (L,), "answer" (), -1 where the list lacks the answer.

    Args:
        questions: of one part.
        images: that hold their images.
        vocabulary: of words and answers.
        length: L, tokens of a text.
        crop: least share of the area of random crops, 1 for none.
        use_image: False gives a grey image instead, for the text-only control.
    """

    def __init__(
        self, questions: Sequence[Question], images: Images, vocabulary: Vocabulary, length: int, crop: float = 1.0,
        use_image: bool = True,
    ):  # fmt: skip
        self.questions, self.images, self.crop, self.use_image = list(questions), images, crop, use_image
        self.tokens = torch.tensor([vocabulary.encode(question.text, length) for question in questions])
        index = {answer: number for number, answer in enumerate(vocabulary.answers)}
        self.answers = torch.tensor([index.get(question.answer, -1) for question in questions])

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if self.use_image:
            image = random_crop(normalise(self.images(self.questions[index].image)), self.crop)
        else:
            image = torch.zeros(3, self.images.size, self.images.size)
        return {"image": image, "tokens": self.tokens[index], "answer": self.answers[index]}


class Captions(Dataset):
    """Pairs for pre-training: "image", "tokens" with masks, "labels" (true tokens where masked, else -100), "present"
    (words of the image's own caption) and "matches".

    Args:
        captions: pairs.
        images: that hold their images.
        vocabulary: of words.
        length: tokens of a caption.
        masked: share of the words that are masked; at least one is.
        blank: share of the captions whose words are all masked.
        mismatched: share of the pairs whose image is that of another caption.
    """

    def __init__(
        self, captions: Sequence[Question], images: Images, vocabulary: Vocabulary, length: int, masked: float,
        blank: float,
        mismatched: float,
    ):  # fmt: skip
        self.captions, self.images = list(captions), images
        self.masked, self.blank, self.mismatched = masked, blank, mismatched
        self.tokens = torch.tensor([vocabulary.encode(caption.text, length) for caption in captions])
        self.mask_token, self.size = vocabulary.mask, len(vocabulary)

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        shown = index
        if torch.rand(()) < self.mismatched:
            shown = int(torch.randint(len(self.captions), ()))
        tokens = self.tokens[index].clone()
        words = tokens.ne(torch.tensor(SPECIAL_TOKENS)[:, None]).all(0)
        draw = torch.rand(len(tokens)).masked_fill(~words, 2.0)
        share = 1.0 if torch.rand(()) < self.blank else self.masked
        chosen = (draw < max(share, float(draw.min()) + 1e-6)) & words
        labels = torch.where(chosen, tokens, -100)
        present = torch.zeros(self.size).scatter(0, self.tokens[shown], 1.0)
        tokens[chosen] = self.mask_token
        return {
            "image": normalise(self.images(self.captions[shown].image)),
            "tokens": tokens,
            "labels": labels,
            "present": present,
            "matches": torch.tensor(int(self.captions[shown].text == self.captions[index].text)),
        }


def trim(tokens: Tensor) -> int:
    """Longest text of a batch (B, L): columns beyond it hold padding only."""
    return int((tokens != PAD).sum(1).max())
