"""Images, questions and captions as tensors.

L is the number of tokens of a text, S the side of an image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from papers.m3ad.data import Question
from papers.m3ad.vocabulary import PAD, Vocabulary
from shared.photo import read_photo
from shared.readers import need_file

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
KEPT_PIXELS = 3e8  # images are kept in memory up to this many pixels together
SPECIAL_TOKENS = (0, PAD, 2)  # start, padding and end are never masked


def read_image(path: Path, size: int) -> np.ndarray:
    """(3, size, size) uint8: RGB, the whole image stretched to a square with antialiasing.

    Raises:
        InputError: missing, broken, or one that `shared.photo` refuses.
    """
    from PIL import Image

    picture = Image.fromarray((255 * read_photo(path)).round().astype(np.uint8))
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


class Images:
    """Images by path at one size, kept in memory while they are few; else they are only looked for at the start.

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
                need_file(path, "an image")

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
    """Pairs for pre-training: "image", "tokens" with masks, "labels" (true tokens where masked, else -100) and
    "matches".

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
        blank: float, mismatched: float,
    ):  # fmt: skip
        self.captions, self.images = list(captions), images
        self.masked, self.blank, self.mismatched = masked, blank, mismatched
        self.tokens = torch.tensor([vocabulary.encode(caption.text, length) for caption in captions])
        self.mask_token = vocabulary.mask

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
        tokens[chosen] = self.mask_token
        return {
            "image": normalise(self.images(self.captions[shown].image)),
            "tokens": tokens,
            "labels": labels,
            "matches": torch.tensor(int(self.captions[shown].text == self.captions[index].text)),
        }


def trim(tokens: Tensor) -> int:
    """Longest text of a batch (B, L): columns beyond it hold padding only."""
    return int((tokens != PAD).sum(1).max())
