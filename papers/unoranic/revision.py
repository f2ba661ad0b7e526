"""How well images are given back (M8a), and how well their corruptions are undone (M8b, section 3.3)."""

import numpy as np
import torch
from torch import Tensor

from papers.unoranic.corruptions import CORRUPTIONS, corrupt, draw_one_type
from papers.unoranic.methods import Method
from shared import metrics

MOST_PSNR = 60.0  # dB; a corruption may leave an image as it is


def generator(*numbers: int) -> torch.Generator:
    """A generator that is the same for every method, so that all see the same corrupted images."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def corrupted_by(images: Tensor, name: str, number: int = 0) -> Tensor:
    """Images under one of the twelve corruptions, each with parameters of its own, the same ones at every call."""
    place = list(CORRUPTIONS).index(name)
    return corrupt(images, draw_one_type(name, len(images), tuple(images.shape[1:]), generator(1, place, number)))


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """PSNR of each image in dB, for a range of 1 and the prediction clipped to it; at most `MOST_PSNR`."""
    prediction, truth = prediction.cpu().clamp(0, 1).flatten(1, 2), truth.cpu().flatten(1, 2)
    return metrics.psnr(prediction, truth, data_range=1.0).clamp(max=MOST_PSNR)


def reconstruction(method: Method) -> dict[str, Tensor]:
    """PSNR(I, Ŝ) of each clean test image, in dB."""
    images = method.table.test.images
    return {"psnr": psnr(method.outputs(images)[3], images)}


def revision(method: Method) -> dict[str, Tensor]:
    """PSNR(I, Î_A) of each test image for each corruption, in dB, and how far E_A moves under corruption.

    "revised_none" is that of the clean image, "revised_mean" and "revised_spread" are mean and standard deviation
    over the twelve corruptions, "revised_drop" is how much lower the mean is than "revised_none". For variant
    `corrupted`, Î_A is S itself, and there is neither. "drift" is the squared distance of the embeddings of S and I
    over the mean squared distance of two test images, for methods with an embedding.
    """
    images, values, drift = method.table.test.images, {}, []
    anatomy, _, restored, _ = method.outputs(images)
    if method.config.method != "none":
        values["revised_none"] = psnr(restored, images)
    between = 2 * anatomy.double().var(0).sum()
    for name in CORRUPTIONS:
        moved, _, restored, _ = method.outputs(corrupted_by(images, name))
        values[f"revised_{name}"] = psnr(restored, images)
        drift.append((moved - anatomy).double().square().sum(1) / between)
    each = torch.stack([values[f"revised_{name}"] for name in CORRUPTIONS])
    values |= {"revised_mean": each.mean(0), "revised_spread": each.std(0)}
    if "revised_none" in values:
        values["revised_drop"] = values["revised_none"] - values["revised_mean"]
    if method.config.method not in ("none", "mean"):
        values["drift"] = torch.stack(drift).mean(0).cpu()
    return values
