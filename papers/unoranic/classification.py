"""Disease and corruption from frozen embeddings (M6, M8c, M8d), and the disease under unseen corruptions (M8e)."""

import torch
from torch import Tensor

from papers.unoranic.common_corruptions import COMMON_CORRUPTIONS, NOISES, SEVERITIES, corrupt_at
from papers.unoranic.corruptions import corrupt, draw_detection
from papers.unoranic.methods import Method
from papers.unoranic.revision import generator
from papers.unoranic.scores import auc_values, fit_probe

EMBEDDINGS = {"disease": ("anatomy", "characteristics"), "corruption": ("characteristics", "anatomy")}
"""the embedding that is meant for a task, and the other one"""


def detection_images(images: Tensor, split: int) -> tuple[Tensor, Tensor]:
    """The images of a split, half of them with one corruption, and (N,) which."""
    draws = draw_detection(len(images), tuple(images.shape[1:]), generator(2, split))
    return corrupt(images, draws), draws.applied.any(1).long()


class Classifier:
    """A method with linear layers on its embeddings, fitted here to the training images; ResNets are their own."""

    def __init__(self, method: Method):
        self.method, self.probes = method, {}
        if method.config.method == "resnet":
            return
        table, kinds = method.table, 2 if method.config.method == "unoranic" else 1
        for task, classes in (("disease", table.classes), ("corruption", 2)):
            pairs = [(table.train.images, table.train.labels), (table.val.images, table.val.labels)]
            if task == "corruption":
                pairs = [detection_images(images, number) for number, (images, _) in enumerate(pairs)]
            for of in EMBEDDINGS[task][:kinds]:
                train, val = ((method.embedding(images, of).cpu(), labels) for images, labels in pairs)
                self.probes[task, of] = fit_probe(train, val, classes)

    def probabilities(self, images: Tensor, task: str, of: str | None = None) -> Tensor:
        """(N, classes) for the task "disease" or "corruption", from the embedding that is meant for it or another."""
        if self.method.config.method == "resnet":
            return self.method.run(getattr(self.method.network, task), 2 * images - 1).softmax(1).cpu()
        of = of or EMBEDDINGS[task][0]
        return self.probes[task, of](self.method.embedding(images, of).cpu()).softmax(1)


def classification(classifier: Classifier) -> dict[str, Tensor]:
    """AUC and accuracy of disease and corruption, as values of the images whose mean they are.

    "gap" is how much better the right embedding is than the other: E_A for disease, E_C for corruption.
    """
    test, values = classifier.method.table.test, {}
    for task, (images, labels) in {
        "disease": (test.images, test.labels),
        "corruption": detection_images(test.images, 2),
    }.items():
        found = classifier.probabilities(images, task)
        values[f"{task}_auc"] = auc_values(found, labels)
        values[f"{task}_acc"] = (found.argmax(1) == labels).double()
        if classifier.method.config.method == "unoranic":
            swapped = auc_values(classifier.probabilities(images, task, EMBEDDINGS[task][1]), labels)
            values[f"{task}_gap"] = values[f"{task}_auc"] - swapped
    return values


def robustness_values(classifier: Classifier) -> dict[tuple[str, int], Tensor]:
    """AUC of the disease under each common corruption and severity: {(name, severity): values of the images}."""
    test, values = classifier.method.table.test, {}
    for number, name in enumerate(COMMON_CORRUPTIONS):
        for severity in SEVERITIES:
            images = corrupt_at(name, test.images, severity, generator(3, number, severity))
            values[name, severity] = auc_values(classifier.probabilities(images, "disease"), test.labels)
    return values


def robustness_means(clean: Tensor, values: dict[tuple[str, int], Tensor]) -> dict[str, Tensor]:
    """Mean AUC over all corruptions and severities and over the three noises, and its fall from the clean images.

    The fall alone favours what has nothing to lose; figure 5b plots the AUC.
    """
    mean = torch.stack(list(values.values())).mean(0)
    noise = torch.stack([found for (name, _), found in values.items() if name in NOISES]).mean(0)
    return {"auc_corrupted": mean, "auc_noisy": noise, "auc_loss": clean - mean, "auc_loss_noise": clean - noise}
