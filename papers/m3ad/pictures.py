"""The panel of answers, and where a question's text looks in an image."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from papers.m3ad.data import Question
from papers.m3ad.samples import read_image
from shared.figures import Picture, grid_of_pictures, pyplot, save_figure

NAMES = {"text_only": "text only", "head": "head", "gen": "M3AD-Gen", "full": "M3AD-Fus", "ft": "fine-tuning"}
PIXELS = 384  # side of an image in a figure
LINE = 0.15  # height of a line of answers, inches


class Answered(NamedTuple):
    """What one variant said to all test questions."""

    variant: str
    answers: list[str]
    scores: list[float]
    accuracy: float
    """percent"""
    share: float
    """trained share of all parameters at the run's sizes, percent"""


def chosen_questions(questions: Sequence[Question], shown: int = 4, offset: int = 0) -> list[int]:
    """Numbers of questions about different images and with different texts, closed and open in turn."""
    chosen: list[int] = []
    for kind in (["open", "closed"] * shown)[:shown]:
        images, texts = {questions[k].image for k in chosen}, {questions[k].text for k in chosen}
        new = [k for k, question in enumerate(questions) if question.image not in images]
        fitting = [k for k in new if questions[k].text not in texts and questions[k].case.startswith(kind)]
        fitting = fitting or new or list(range(len(questions)))
        chosen.append(fitting[(offset + 7 * len(chosen)) % len(fitting)])
    return chosen


def draw_answers(questions: Sequence[Question], found: Sequence[Answered], offset: int, out: Path) -> None:
    """Four questions with the truth and all answers, and accuracy against trained share."""
    pictures, below = [], []
    for number in chosen_questions(questions, 4, offset):
        question = questions[number]
        title = "\n".join(textwrap.wrap(question.text, 28)[:3])
        pictures.append(Picture(read_image(question.image, PIXELS), title=title))
        lines = [f"truth: {textwrap.shorten(question.answer, 26)}"]
        for one in found:
            mark = "✓" if one.answers[number] == question.answer else "✗"
            answer = textwrap.shorten(one.answers[number], 18)
            lines.append(f"{mark} {NAMES.get(one.variant, one.variant)}: {answer} ({one.scores[number]:.2f})")
        below.append("\n".join(lines))
    grid = grid_of_pictures([pictures], [], None, inches=2.3, room=("right", 3.6))
    for cell, text in zip(grid.axes[0], below):
        cell.set_xlabel(text, fontsize=8)
    width, height = grid.figure.get_size_inches()
    grid.figure.set_size_inches(width, height + LINE * (1 + len(found)))
    axis = grid.room.subplots()
    for one in found:
        axis.plot(one.share, one.accuracy, "o", color="C3" if one.variant == "text_only" else "C0")
        under = one.variant == "text_only"
        axis.annotate(
            NAMES.get(one.variant, one.variant), (one.share, one.accuracy), xytext=(0, -15 if under else 8),
            textcoords="offset points", fontsize=8, ha="center",
        )  # fmt: skip
    low, high = min(one.accuracy for one in found), max(one.accuracy for one in found)
    axis.set(
        xscale="log", xlim=(min(one.share for one in found) / 3, 300), ylim=(low - 6, high + 6),
        xlabel="trained share of\nthis run's parameters [%]", ylabel=f"accuracy on {len(questions)} test questions [%]",
    )  # fmt: skip
    axis.grid(alpha=0.3)
    save_figure(grid.figure, out)


def draw_attention(path: Path, weights, question: str, out: Path) -> None:
    """The image, and the attention (V,) that the text's first token pays to its patches, without the class token."""
    import numpy as np

    side = round((len(weights) - 1) ** 0.5)
    image = read_image(path, PIXELS).transpose(1, 2, 0) / 255
    grid = np.asarray(weights[1:]).reshape(side, side)
    grid = (grid - grid.min()) / max(float(np.ptp(grid)), 1e-9)
    cells = np.arange(PIXELS) * side // PIXELS
    heat = pyplot().get_cmap("inferno")(grid[np.ix_(cells, cells)])[..., :3]
    heading = "\n".join(textwrap.wrap(question, 60)[:4])
    grid_of_pictures([[image, (image + heat) / 2]], ["image", "attention"], out, heading=heading)
