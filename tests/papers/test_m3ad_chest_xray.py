"""The chest film's simulator, and the questions of the stand-in for VQA-RAD."""

import doctest
import json

import numpy as np
import pytest

from benchmarks.standins import chest_xray, m3ad
from benchmarks.standins.chest_xray import Findings, simulate


def test_examples_in_docstrings():
    assert doctest.testmod(chest_xray, extraglobs={"np": np}).failed == 0


def test_films_are_a_function_of_seed_and_findings():
    one, two = simulate(3, Findings(effusion="left"), 64), simulate(3, Findings(effusion="left"), 64)
    assert np.array_equal(one.image, two.image) and one.truth == two.truth
    assert not np.array_equal(one.image, simulate(4, Findings(effusion="left"), 64).image)


@pytest.mark.parametrize("seed", range(3))
def test_anatomy_is_where_it_belongs(seed):
    film = simulate(seed, Findings(), 96)
    right, left, heart = (film.masks[name] for name in ("right lung", "left lung", "heart"))
    columns = np.arange(96)
    assert (right * columns).sum() / right.sum() < 48 < (left * columns).sum() / left.sum(), "the left is on the right"
    lungs, heart = (right | left) & ~heart, heart & ~(right | left)
    assert film.image[lungs].mean() + 30 < film.image[heart].mean()
    assert 0.38 < film.truth["cardiothoracic_ratio"] < 0.5
    assert simulate(seed, Findings(cardiomegaly=True), 96).truth["cardiothoracic_ratio"] > 0.5


@pytest.mark.parametrize(("side", "other"), [("left", "right"), ("right", "left")])
def test_findings_are_on_their_side(side, other):
    plain = simulate(1, Findings(), 96)
    wet = simulate(1, Findings(effusion=side), 96)
    change = {name: np.abs(wet.image[wet.masks[f"{name} lung"]].astype(float)
                           - plain.image[plain.masks[f"{name} lung"]]).mean() for name in (side, other)}  # fmt: skip
    assert change[side] > 2 * change[other]
    film = simulate(2, Findings(nodules=(side, side)), 96)
    assert len(film.truth["nodules"]) == 2
    for nodule in film.truth["nodules"]:
        assert nodule["side"] == side and (nodule["column"] > 48) == (side == "left")
        row, column, radius = round(nodule["row"]), round(nodule["column"]), nodule["radius"]
        rows, columns = np.mgrid[:96, :96]
        distance = np.hypot(rows - row, columns - column)
        around = (distance > 1.5 * radius + 1) & (distance < 2.5 * radius + 2) & film.masks[f"{side} lung"]
        assert film.image[distance < 0.7 * radius].mean() > film.image[around].mean()
    assert f"{side} lung" in film.report and "Two nodules" in film.report


def test_every_question_has_images_with_each_answer():
    """Within a question no answer is alone, so that its words don't give the answer."""
    answers: dict[str, set] = {}
    for number, kind in enumerate(8 * m3ad.KINDS[1:] + 40 * m3ad.KINDS[:1]):
        for _, question, answer in m3ad.questions_about(
            m3ad.make_picture(np.random.default_rng(number), 32, True, kind)
        ):
            answers.setdefault(question, set()).add(answer)
    assert all(len(found) > 1 for found in answers.values()), answers


def test_questions_tell_the_truth_of_their_picture():
    picture = m3ad.Picture(np.zeros((4, 4)), "chest", ("left", "left"), True, "right")
    found = {question: answer for _, question, answer in m3ad.questions_about(picture)}
    assert found["On what side is the lesion?"] == "left" and found["Is the lesion on the patient's left?"] == "yes"
    assert found["How many lesions are visible?"] == "2" and found["Which side has fluid?"] == "right"
    both = m3ad.Picture(np.zeros((4, 4)), "head t2", ("left", "right"))
    found = {question: answer for _, question, answer in m3ad.questions_about(both)}
    assert "On what side is the lesion?" not in found and found["What weighting is this?"] == "t2"


def test_stand_in_is_deterministic_and_questions_have_words_of_their_own(tmp_path):
    from papers.m3ad.vocabulary import split_words

    for name in ("one", "two"):
        m3ad.generate(tmp_path / name, seed=5, size="smoke")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    captions = set(split_words((tmp_path / "one/pretrain/captions.txt").read_text("utf-8")))
    questions = json.loads((tmp_path / "one/vqa_rad/trainset.json").read_text("utf-8"))
    words = {word for question in questions for word in split_words(question["question"])}
    assert {"imaging", "multiple", "abnormality"} <= words - captions, captions


def test_words_do_not_depend_on_how_a_processor_rounds(tmp_path, monkeypatch):
    """A simulator that needs more random numbers, as where pixels are rounded otherwise, changes no word and no
    choice of questions: these have random numbers of their own."""
    m3ad.generate(tmp_path / "one", seed=3, size="smoke")
    make_picture = m3ad.make_picture

    def hungry(rng, *args, **kwargs):
        picture = make_picture(rng, *args, **kwargs)
        rng.random(7)
        return picture

    monkeypatch.setattr(m3ad, "make_picture", hungry)
    m3ad.generate(tmp_path / "two", seed=3, size="smoke")
    for name in ("pretrain/captions.txt", "vqa_rad/trainset.json", "vqa_rad/testset.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
