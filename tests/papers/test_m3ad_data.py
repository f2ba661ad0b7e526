"""M3AD's readers of four data sets, and what becomes of images and texts."""

import json
from pathlib import Path

import numpy as np
import pytest

from papers.m3ad import answering, data, samples, vocabulary
from shared.errors import InputError


def put_image(path: Path, value=100):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 9), value, np.uint8)).save(path)


def test_slake_layout(tmp_path):
    for name, number in (("train", 1), ("validate", 2), ("test", 3)):
        put_image(tmp_path / f"slack/imgs/xmlab{number}/source.jpg")
        entry = {"img_name": f"xmlab{number}/source.jpg", "question": "Where?", "answer": " Left  Lung.", "qid": number}
        entries = [{**entry, "q_lang": "en", "answer_type": "OPEN"}, {**entry, "q_lang": "zh", "answer_type": "OPEN"}]
        (tmp_path / f"slack/{name}.json").write_text(json.dumps(entries), "utf-8")
    assert data.find_layout(tmp_path)[0] == "slake"
    parts = data.read_questions(tmp_path)
    assert [len(parts[split]) for split in data.SPLITS] == [1, 1, 1]
    question = parts["val"][0]
    assert (question.case, question.answer) == ("open/2", "left lung")
    assert samples.read_image(question.image, 4).shape == (3, 4, 4)


def test_medvqa_2019_layout(tmp_path):
    for split in data.SPLITS:
        put_image(tmp_path / f"medvqa_2019/{split}/images/a1.jpg")
        folder = tmp_path / f"medvqa_2019/{split}/QA"
        folder.mkdir()
        for category in data.MED19_CATEGORIES:
            (folder / f"{category}.csv").write_text(f"a1|what {category}?|the {category}\n", "utf-8")
    parts = data.read_questions(tmp_path)
    assert [question.case for question in parts["test"]] == ["modality/0", "organ/0", "plane/0", "abnormal/0"]
    assert parts["train"][0].image.exists()
    (tmp_path / "medvqa_2019/test/QA/Organ.csv").write_text("a1|what?\n", "utf-8")
    with pytest.raises(InputError, match="Organ.csv.*line 1"):
        data.read_questions(tmp_path)


def test_melinda_layout(tmp_path):
    for number, split in enumerate(("train", "dev", "test")):
        put_image(tmp_path / f"melinda/melinda_images/f{number}.png")
        text = f'figure_file,caption,p_meth_label\nf{number}.png,"Bands, of a gel",western blot\n'
        (tmp_path / f"melinda/{split}.csv").write_text(text, "utf-8")
    parts = data.read_questions(tmp_path, "melinda")
    assert parts["test"][0].text == "Bands, of a gel" and parts["test"][0].case == "melinda/0"
    assert data.answer_list(parts, "train") == ["western blot"]


def write_vqa_rad(folder: Path, **parts) -> None:
    """`trainset` and so on, each a list of entries."""
    for name, entries in parts.items():
        (folder / f"{name}.json").write_text(json.dumps(entries), "utf-8")


def entry(number: int, **changed) -> dict:
    found = {"qid": number, "image_name": f"i{number // 3}.jpg", "question": "q", "answer": number}
    return {**found, "answer_type": "OPEN ", **changed}


def test_vqa_rad_without_validation_part_holds_out_whole_images(tmp_path):
    write_vqa_rad(tmp_path, trainset=[entry(k) for k in range(90)], testset=[entry(k) for k in range(90, 96)])
    parts = data.read_questions(tmp_path)
    assert len(parts["val"]) == 9 and len(parts["train"]) == 81
    assert not {q.image for q in parts["val"]} & {q.image for q in parts["train"]}
    assert len(data.answer_list(parts, "all")) == 96 and len(data.answer_list(parts, "train")) == 81
    captions = data.read_captions(tmp_path)
    assert len(captions) == 81 and captions[0].text == "q 0"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"answer_type": "MAYBE"}, "testset.json: entry 1.*maybe"),
        ({"question": None}, "testset.json: entry 1 has no 'question'"),
        ({"answer": ["yes"]}, "testset.json: entry 1 has a wrong or empty 'answer'"),
        ({"answer": True}, "testset.json: entry 1 has a wrong or empty 'answer'"),
        ({"image_name": "../i.jpg"}, "not inside this folder"),
        ({"qid": 90}, "test part: 'open/90' comes 2 times"),
        ({"qid": 3}, "train and test: '3' is in both"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, changed, words):
    """Also a question that is asked twice in the test, or in training and test."""
    tests = [entry(90), entry(91, **changed)]
    write_vqa_rad(tmp_path, trainset=[entry(k) for k in range(30)], testset=tests)
    with pytest.raises(InputError, match=words):
        data.read_questions(tmp_path)


def test_a_folder_of_captions_needs_its_list(tmp_path):
    """Without it, the backbone would silently be trained on something else."""
    write_vqa_rad(tmp_path, trainset=[entry(k) for k in range(30)], testset=[entry(90)])
    (tmp_path / "pretrain").mkdir()
    with pytest.raises(InputError, match="captions.txt"):
        data.read_captions(tmp_path)


def test_images_of_every_kind(tmp_path):
    from PIL import Image

    grey = np.array([[0, 100], [200, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (samples.read_image(tmp_path / "grey.png", 2) == grey).all()
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert (samples.read_image(tmp_path / "deep.png", 2) == grey).all()
    Image.fromarray(np.stack([grey, 0 * grey, grey], -1)).save(tmp_path / "colour.png")
    assert not samples.read_image(tmp_path / "colour.png", 2)[1].any()
    (tmp_path / "no.png").write_text("not an image", "utf-8")
    with pytest.raises(InputError, match="no.png"):
        samples.read_image(tmp_path / "no.png", 2)


def test_unknown_words_share_numbers_and_special_tokens_are_never_masked():
    words = vocabulary.Vocabulary(["heart left lung"])
    one, other = words.encode("spleen", 4)[1], words.encode("kidney", 4)[1]
    assert one != other and all(4 <= number < 4 + vocabulary.UNKNOWN for number in (one, other))
    assert words.encode("Left, LUNG!", 5) == [0, 4 + vocabulary.UNKNOWN + 1, 4 + vocabulary.UNKNOWN + 2, 2, 1]
    assert len(words.encode("a " * 50, 6)) == 6 and max(words.encode("lung", 3)) < len(words)

    class Grey:
        size = 4

        def __call__(self, path):
            return np.zeros((3, 4, 4), np.uint8)

    captions = [data.Question("c", Path("x"), "heart left lung", "")]
    pairs = samples.Captions(captions, Grey(), words, 8, 0.01, 0.0, 0.0)
    for _ in range(20):
        item = pairs[0]
        assert (item["labels"] != -100).sum() == 1 and item["tokens"][0] == 0 and item["tokens"][4] == 2
        assert (item["tokens"][5:] == 1).all() and item["matches"] == 1
    whole = samples.Captions(captions, Grey(), words, 8, 0.01, 1.0, 0.0)[0]
    assert (whole["tokens"] == words.mask).sum() == 3


def test_text_only_sees_no_image():
    words = vocabulary.Vocabulary(["a"], ["no", "yes"])
    questions = [
        data.Question("closed/0", Path("absent.jpg"), "a?", "yes"),
        data.Question("open/1", Path("b"), "a", "9"),
    ]
    items = samples.Questions(questions, samples.Images([], 8), words, 5, use_image=False)
    assert not items[0]["image"].any() and items[0]["answer"] == 1 and items[1]["answer"] == -1


def test_lookup_is_the_majority_of_the_same_words():
    def ask(text, answer=""):
        return data.Question("open/0", Path("none"), text, answer)

    training = [ask("Which side?", answer) for answer in ("left", "right", "right")]
    training += [ask("Is there fluid?", answer) for answer in ("yes", "yes", "yes", "no")]
    lookup, again = answering.QuestionLookup(training), answering.QuestionLookup()
    again.load_state_dict(lookup.state_dict())
    for one in (lookup, again):
        assert [one(text) for text in ("which SIDE?", "Is there fluid?", "Never asked?")] == ["right", "yes", "yes"]
    with pytest.raises(ValueError, match="texts"):
        again.load_state_dict({"table": {"": 3}})


def test_forest_needs_the_thumbnail_and_the_words(tmp_path):
    """Bright and dark images, and two questions whose answers to them are opposite; new grey values in the test."""
    asked = {"Is it dark?": ("yes", "no"), "Is it bright?": ("no", "yes"), "Which organ is it?": ("heart", "heart")}

    def part(values):
        found = []
        for value in values:
            put_image(tmp_path / f"{value}.png", value)
            for text, answers in asked.items():
                found.append(data.Question("open/0", tmp_path / f"{value}.png", text, answers[value > 127]))
        return found

    training, test = part([*range(10, 50, 4), *range(200, 240, 4)]), part([20, 45, 201, 236])
    blind = [data.Question(q.case, q.image, q.text, "") for q in test]
    assert answering.forest_answers(training, blind, 0) == [q.answer for q in test]
    unknown = [data.Question("open/0", tmp_path / "20.png", "Never asked", "")]
    assert answering.forest_answers(training, unknown, 3) == answering.forest_answers(training, unknown, 3)
