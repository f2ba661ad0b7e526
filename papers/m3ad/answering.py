"""Answers to questions: the scores of a network, its accuracy, the best weights so far, and two controls without one.

A is the number of answers, N that of questions.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from papers.m3ad.data import Question
from papers.m3ad.model import M3AD, task_state
from papers.m3ad.samples import Images, Questions, trim
from papers.m3ad.vocabulary import split_words
from shared.finite import finite

AT_ONCE = 64
TREES, THUMBNAIL = 200, 16


def probabilities(model: M3AD, dataset: Questions, device: torch.device) -> Tensor:
    """Scores (N, A) of all questions of a data set: the sigmoid of the logits (M11).

    Raises:
        InputError: one is not finite.
    """
    model.eval()
    scores = []
    with torch.no_grad():
        for first in range(0, len(dataset), AT_ONCE):
            batch = default_collate([dataset[k] for k in range(first, min(first + AT_ONCE, len(dataset)))])
            tokens = batch["tokens"][:, : trim(batch["tokens"])]
            logits = model(batch["image"].to(device), tokens.to(device)).float()
            scores.append(finite(logits, "the scores of the answers").sigmoid().cpu())
    return torch.cat(scores)


def accuracy_of(model: M3AD, dataset: Questions, device: torch.device) -> float:
    """Share of the questions whose answer has the highest score; one that the list lacks counts as wrong."""
    best = probabilities(model, dataset, device).argmax(1)
    return (best == dataset.answers).double().mean().item()


class Best:
    """The task's tensors with the best validation accuracy so far; a checkpoint holds them beside the last ones."""

    def __init__(self):
        self.accuracy, self.weights = -1.0, {}

    def offer(self, accuracy: float, model: M3AD) -> None:
        if accuracy > self.accuracy:
            self.accuracy = accuracy
            self.weights = {name: value.cpu() for name, value in task_state(model).items()}

    def state_dict(self) -> dict:
        return {"accuracy": self.accuracy, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        """
        Raises:
            ValueError, KeyError: this is no such state.
        """
        if not isinstance(state["accuracy"], float) or not isinstance(state["weights"], dict):
            raise ValueError("the best weights are no dictionary with their accuracy")
        self.accuracy, self.weights = state["accuracy"], dict(state["weights"])


class QuestionLookup:
    """The control without image and without network: the most frequent training answer to a question's words, and
    where these are new, to all questions. On equal counts the answer that came first in the data.

    Example:
        >>> from papers.m3ad.data import Question
        >>> asked = [Question("open/1", None, "Which side?", answer) for answer in ("left", "right", "right")]
        >>> lookup = QuestionLookup(asked)
        >>> lookup("which SIDE?"), lookup("Is it new?")
        ('right', 'right')
    """

    def __init__(self, training=()):
        counts: dict[str, Counter] = {}
        for question in training:
            for text in (question.text.lower(), ""):  # "": all of them
                counts.setdefault(text, Counter())[question.answer] += 1
        self.table = {text: found.most_common(1)[0][0] for text, found in counts.items()}

    def __call__(self, text: str) -> str:
        return self.table.get(text.lower(), self.table[""])

    def state_dict(self) -> dict:
        return {"table": self.table}

    def load_state_dict(self, state: dict) -> None:
        """
        Raises:
            ValueError, KeyError: this is no such table.
        """
        table = state["table"]
        if "" not in table or not all(isinstance(word, str) for pair in table.items() for word in pair):
            raise ValueError("the table of answers holds something else than texts")
        self.table = dict(table)


def forest_answers(training: Sequence[Question], asked: Sequence[Question], seed: int) -> list[str]:
    """The control without a backbone: a random forest on 16 x 16 grey pixels and on which words a question has.

    Its trees are grown one after the other and only their votes are kept: with a thousand answers, all trees at once
    would need tens of gigabytes.

    Args:
        training: questions with their answers.
        asked: questions to answer.
        seed: of the trees.

    Raises:
        InputError: an image is missing or broken.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.feature_extraction.text import CountVectorizer

    images = Images([question.image for question in (*training, *asked)], THUMBNAIL)
    words = CountVectorizer(binary=True, analyzer=split_words).fit([question.text for question in training])

    def features(questions: Sequence[Question]) -> np.ndarray:
        pixels = np.stack([images(question.image).mean(0).ravel() / 255 for question in questions])
        return np.hstack([pixels, words.transform([question.text for question in questions]).toarray()])

    known, new, truth = features(training), features(asked), [question.answer for question in training]
    votes = 0
    for number in range(TREES):
        tree = RandomForestClassifier(1, max_features=0.3, random_state=TREES * seed + number).fit(known, truth)
        votes = votes + tree.predict_proba(new)
    return tree.classes_[votes.argmax(1)].tolist()
