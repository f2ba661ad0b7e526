"""Stand-in for VQA-RAD, for multi-modal adapters: simulated films and slices, questions that need image and text.

OUT/pretrain/captions.txt, images/                          image|caption, for the backbone
OUT/vqa_rad/{trainset,valset,testset}.json, images/*.jpg    questions, as published

Four kinds of images: frontal chest films (benchmarks.standins.chest_xray), axial CT of the head and the upper
abdomen, axial T1- and T2-weighted MR of the head. Sides are the patient's: left is right in the image. The images of
the questions are noisier and windowed otherwise than those of the captions, which are never questions and
lack some of their words. No question is answered by its words alone: each has images with each of its answers.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from benchmarks.standins import chest_xray
from benchmarks.standins.chest_ct import HU, MU_CM
from benchmarks.standins.head_slice import acquire, contrast, make_head, smooth_noise
from benchmarks.standins.torso import LABELS, Torso

Size = Literal["smoke", "cpu", "study", "paper"]
KINDS, KIND_SHARES = ("chest", "head ct", "abdomen ct", "head t1", "head t2"), (0.4, 0.2, 0.2, 0.1, 0.1)
HEAD_HU = {"scalp": 40.0, "skull": 1000.0, "fluid": 6.0, "grey": 39.0, "white": 30.0, "deep": 37.0}
T1 = {"scalp": 0.95, "skull": 0.1, "fluid": 0.2, "grey": 0.55, "white": 0.82, "deep": 0.66}
T2 = {"scalp": 0.55, "skull": 0.08, "fluid": 1.0, "grey": 0.55, "white": 0.4, "deep": 0.48}
NUMBERS = ("no", "one", "two", "three")


@dataclass(frozen=True)
class Setting:
    """Numbers of captions and of images with questions, questions per image, pixels."""

    captions: int
    images: tuple[int, int, int]
    """training, validation, test"""
    questions: int
    pixels: int


SETTINGS = {
    "smoke": Setting(20, (8, 2, 6), 4, 32),
    "cpu": Setting(700, (280, 40, 80), 6, 64),
    "study": Setting(700, (280, 40, 80), 6, 64),
    "paper": Setting(1500, (280, 40, 80), 6, 128),
}


@dataclass(frozen=True)
class Picture:
    """One image and what is known about it."""

    image: np.ndarray
    """(n, n) uint8"""
    kind: str
    lesions: tuple[str, ...] = ()
    """sides of all focal lesions: left or right"""
    cardiomegaly: bool = False
    effusion: str | None = None
    words: str = field(default="")
    """the report's sentences"""


def random_sides(rng: np.random.Generator) -> tuple[str, ...]:
    """Sides of 0 to 3 lesions; two thirds of those with several have all on one side."""
    count = int(rng.choice([0, 1, 2, 3], p=[0.34, 0.33, 0.2, 0.13]))
    if count > 1 and rng.random() < 0.66:
        return (("left", "right")[rng.integers(2)],) * count
    return tuple(("left", "right")[k] for k in rng.integers(0, 2, count))


def place_blobs(rng, sides, allowed: np.ndarray, radius: tuple[float, float]) -> np.ndarray:
    """Soft balls (n, n) in 0 to 1 whose centres lie in `allowed`, on the patient's sides, clear of each other.

    Args:
        sides: one per ball.
        allowed: (n, n) bool.
        radius: range in pixels.
    """
    size = allowed.shape[0]
    rows, columns = np.mgrid[:size, :size]
    total = np.zeros((size, size))
    taken: list[tuple[float, float, float]] = []
    for side in sides:
        half = columns > 0.56 * size if side == "left" else columns < 0.44 * size
        free = allowed & half
        r = rng.uniform(*radius)
        for a, b, other in taken:
            free = free & (np.hypot(rows - a, columns - b) > r + other + size / 40)
        candidates = np.argwhere(free if free.any() else allowed & half)
        if not len(candidates):
            candidates = np.argwhere(half)
        a, b = candidates[rng.integers(len(candidates))]
        taken.append((a, b, r))
        ragged = np.hypot(rows - a, columns - b) + 0.12 * r * smooth_noise(rng, size, max(size / 40, 1))
        total = np.maximum(total, 1 / (1 + np.exp((ragged - r) / 0.45)))
    return total


def window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.clip((values - centre) / width + 0.5, 0, 1)


def streaks(rng, size: int) -> np.ndarray:
    """Noise of CT: rays through the object differ, so errors lie along lines; unit variance."""
    x, y = np.meshgrid(*[np.arange(size) - size / 2] * 2)
    noise = np.zeros((size, size))
    for angle in rng.uniform(0, np.pi, 6):
        along = x * np.cos(angle) + y * np.sin(angle)
        noise += np.interp(along, np.arange(-size, size), rng.normal(size=2 * size))
    noise = noise / noise.std() + ndimage.gaussian_filter(rng.normal(size=(size, size)), 0.6) * 1.8
    return noise / noise.std()


def head(rng: np.random.Generator, kind: str, size: int, new: bool) -> Picture:
    """Axial head: a haemorrhage is bright on CT; a tumour is bright on T2 and dark on T1."""
    anatomy = make_head(rng, size, (0.7, 1.4))
    sides = random_sides(rng)
    inside = ndimage.binary_erosion(
        sum(anatomy.tissues[name] for name in ("white", "grey", "deep")) > 0.4, iterations=max(1, size // 22)
    )
    blobs = place_blobs(rng, sides, inside, (0.05 * size, 0.085 * size))
    if kind == "head ct":
        values = -1000.0 + sum((HEAD_HU[name] + 1000) * share for name, share in anatomy.tissues.items())
        values = values * (1 - blobs) + 72 * blobs
        values = values + (4.5 if new else 3) * streaks(rng, size)
        image = window(values, rng.uniform(36, 44), rng.uniform(95, 130) if new else rng.uniform(75, 90))
        name = "haemorrhage"
    else:
        weights = T1 if kind == "head t1" else T2
        signal = contrast(anatomy, weights, rng)
        signal = signal * (1 - blobs) + (0.22 if kind == "head t1" else 0.98) * blobs
        image = acquire(signal, rng, noise=0.045 if new else 0.025, bias=0.3 if new else 0.15)
        image = np.clip(image / np.quantile(image, 0.995), 0, 1)
        name = "tumour"
    image = (255 * image).round().astype(np.uint8)
    return Picture(image, kind, sides, words=lesion_words(sides, name, "hemisphere") or "Normal brain.")


def abdomen(rng: np.random.Generator, size: int, new: bool) -> Picture:
    """Axial CT through liver, spleen and stomach; lesions are dark in the liver (right) and in the spleen (left)."""
    torso = Torso.random(rng)
    height = -torso.diaphragm - rng.uniform(48, 66)
    pixel_mm = 2.2 * torso.half_width / size
    anatomy = torso.render((size, size, 1), pixel_mm, (0.0, 0.0, height))
    values = np.interp(anatomy.mu_map[..., 0].T, MU_CM, HU)
    labels = anatomy.labels[..., 0].T
    organs = np.isin(labels, [LABELS["liver"], LABELS["spleen"]])
    values = np.where(np.isin(labels, [LABELS["liver"]]), values + 45, values)  # portal venous phase
    values = np.where(labels == LABELS["spleen"], values + 60, values)
    values = np.where(labels == LABELS["blood"], values + 110, values)
    # Spine, aorta and vena cava, which the chest's simulator leaves out below the diaphragm.
    x, y = np.meshgrid(*[(np.arange(size) - (size - 1) / 2) * pixel_mm] * 2)
    back = torso.half_depth - torso.fat
    bone = np.hypot(x / 21, (y - back + 44) / 17)
    values = np.where(bone < 1, np.where(bone > 0.85, 420, 190), values)
    for column, radius, hu in ((18, 11, 165.0), (-20, 10, 120.0)):
        values = np.where(np.hypot(x - column, y - back + 76) < radius, hu, values)
    organs &= values < 115
    sides = random_sides(rng)
    solid = ndimage.binary_erosion(organs, iterations=max(1, size // 30))
    blobs = place_blobs(rng, sides, solid if solid.any() else organs, (0.035 * size, 0.06 * size))
    values = values * (1 - blobs) + 15 * blobs + (22 if new else 12) * streaks(rng, size)
    image = window(values, rng.uniform(50, 80), rng.uniform(380, 480) if new else rng.uniform(280, 340))
    sentence = lesion_words(sides, "metastasis", "side").replace("two metastasis", "two metastases")
    return Picture((255 * image).round().astype(np.uint8), "abdomen ct", sides, words=sentence or "Normal organs.")


def chest(rng: np.random.Generator, size: int, new: bool) -> Picture:
    """Frontal film; nodules and opacities are its focal lesions."""
    sides = random_sides(rng)
    nodular = rng.random() < 0.5 or len(sides) > 2
    findings = chest_xray.Findings(
        cardiomegaly=bool(rng.random() < 0.45),
        effusion=("left", "right")[rng.integers(2)] if rng.random() < 0.35 else None,
        nodules=sides if nodular else (),
        opacities=() if nodular else sides,
    )
    film = chest_xray.simulate(rng, findings, size)
    image = film.image / 255.0
    if new:  # another printer and scanner: steeper curve, grain, dust
        image = np.clip(
            image ** rng.uniform(0.75, 1.3) * rng.uniform(0.85, 1) + 0.025 * rng.normal(size=image.shape), 0, 1
        )
    picture = (255 * image).round().astype(np.uint8)
    return Picture(picture, "chest", sides, findings.cardiomegaly, findings.effusion, film.report)


def lesion_words(sides: tuple[str, ...], name: str, where: str) -> str:
    """Sentences that count the lesions by side; empty without any."""
    counted = [(sides.count(side), side) for side in ("right", "left") if side in sides]
    plural = {"metastasis": "metastases"}.get(name, f"{name}s")
    return " ".join(f"{NUMBERS[n].capitalize()} {plural if n > 1 else name}, {side} {where}." for n, side in counted)


def make_picture(rng: np.random.Generator, size: int, new: bool, kind: str | None = None) -> Picture:
    """A random image; `new` has the noise and windows of the images with questions."""
    kind = kind or KINDS[rng.choice(len(KINDS), p=KIND_SHARES)]
    if kind == "chest":
        return chest(rng, size, new)
    return abdomen(rng, size, new) if kind == "abdomen ct" else head(rng, kind, size, new)


def caption(picture: Picture, rng: np.random.Generator) -> str:
    """What the backbone reads beside an image: a report, or (half of the time) what a teaching file's legend says."""
    kind, sides = picture.kind, picture.lesions
    if rng.random() < 0.5:
        lead = {
            "chest": "Frontal radiograph of the thorax.",
            "head ct": "Axial tomogram of the skull.",
            "abdomen ct": "Axial tomogram of the liver.",
            "head t1": "Axial resonance of the skull, longitudinal.",
            "head t2": "Axial resonance of the skull, transverse.",
        }[kind]
        return f"{lead} {picture.words}"
    lead = {
        "chest": "X-ray of the chest, PA plane.",
        "head ct": "CT of the head, axial plane.",
        "abdomen ct": "CT of the abdomen, axial plane.",
        "head t1": "MRI of the head, axial plane, T1 weighting.",
        "head t2": "MRI of the head, axial plane, T2 weighting.",
    }[kind]
    parts = [lead]
    if kind == "chest":
        parts.append("Heart enlarged." if picture.cardiomegaly else "Heart not enlarged.")
        parts.append(f"Fluid on the {picture.effusion} side." if picture.effusion else "No fluid.")
    where = "on both sides" if len(set(sides)) == 2 else f"on the {sides[0]} side" if sides else ""
    parts.append(f"{NUMBERS[len(sides)].capitalize()} lesion{'s' * (len(sides) != 1)} {where}".strip() + ".")
    return " ".join(parts)


def questions_about(picture: Picture) -> list[tuple[str, str, str]]:
    """All questions that an image can answer: (OPEN or CLOSED, question, answer)."""
    kind, sides = picture.kind, picture.lesions
    modality = {"chest": "x-ray", "head ct": "ct", "abdomen ct": "ct"}.get(kind, "mri")
    organ = {"chest": "chest", "abdomen ct": "abdomen"}.get(kind, "head")

    def yes(condition: bool) -> str:
        return "yes" if condition else "no"

    found = [
        ("OPEN", "What imaging modality was used?", modality),
        ("OPEN", "Which body part is shown?", organ),
        ("OPEN", "In which plane was this acquired?", "pa" if kind == "chest" else "axial"),
        ("OPEN", "How many lesions are visible?", str(len(sides))),
        ("CLOSED", "Is there any focal abnormality?", yes(bool(sides))),
        ("CLOSED", "Are there multiple lesions?", yes(len(sides) > 1)),
        ("CLOSED", "Is this a CT?", yes(modality == "ct")),
    ]
    if sides and len(set(sides)) == 1:
        found.append(("OPEN", "On what side is the lesion?", sides[0]))
        found.append(("CLOSED", "Is the lesion on the patient's left?", yes(sides[0] == "left")))
    if kind == "chest":
        found.append(("CLOSED", "Is the heart enlarged?", yes(picture.cardiomegaly)))
        found.append(("CLOSED", "Is there fluid in the pleura?", yes(picture.effusion is not None)))
        if picture.effusion:
            found.append(("OPEN", "Which side has fluid?", picture.effusion))
    if modality == "mri":
        found.append(("OPEN", "What weighting is this?", "t1" if kind == "head t1" else "t2"))
    return found


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> Path:
    """Writes captions and questions under `out`, which appears only when it is complete.

    Args:
        out: folder to create; must not exist or be empty.
        seed: of everything random. An image depends only on seed, size and its number, and so do its caption and the
            choice of its questions, for which numbers of their own are drawn: a simulator may need more of them where
            a processor rounds otherwise.
        size: smoke (seconds), cpu and study (the same, 64 pixels) or paper (128 pixels).

    Raises:
        InputError: an unknown size, or `out` already holds something.
    """
    from PIL import Image

    from shared.errors import InputError
    from shared.files import complete_or_absent

    if size not in SETTINGS:
        raise InputError(f"unknown size {size!r}: choose one of {', '.join(SETTINGS)}")
    setting = SETTINGS[size]
    with complete_or_absent(out) as folder:
        (folder / "pretrain" / "images").mkdir(parents=True)
        (folder / "vqa_rad" / "images").mkdir(parents=True)
        lines = []
        for number in range(setting.captions):
            picture = make_picture(np.random.default_rng([seed, 0, number]), setting.pixels, new=False)
            Image.fromarray(picture.image).save(folder / f"pretrain/images/p{number:05d}.jpg", quality=92)
            lines.append(f"p{number:05d}.jpg|{caption(picture, np.random.default_rng([seed, 2, number]))}")
        (folder / "pretrain" / "captions.txt").write_text("\n".join(lines) + "\n", "utf-8")
        number = qid = 0
        for part, count in zip(("trainset", "valset", "testset"), setting.images):
            entries = []
            for _ in range(count):
                picture = make_picture(np.random.default_rng([seed, 1, number]), setting.pixels, new=True)
                name = f"synpic{number:05d}.jpg"
                Image.fromarray(picture.image).save(folder / "vqa_rad" / "images" / name, quality=92)
                possible = questions_about(picture)
                order = np.random.default_rng([seed, 3, number]).permutation(len(possible))
                for k in sorted(order[: setting.questions]):
                    kind, question, answer = possible[k]
                    entry = {"qid": qid, "image_name": name, "image_organ": picture.kind.split()[0].upper()}
                    entries.append({**entry, "question": question, "answer": answer, "answer_type": kind})
                    qid += 1
                number += 1
            text = json.dumps(entries, indent=1)
            (folder / "vqa_rad" / f"{part}.json").write_text(text, "utf-8")
        note = "Simulated images, captions and questions in the layout of VQA-RAD; no patient is in it.\n"
        (folder / "STANDIN.txt").write_text(f"{note}seed {seed}, size {size}\n", "utf-8")
    return Path(out)
