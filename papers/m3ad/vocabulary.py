"""From text to token numbers, and from answers to numbers."""

import bisect
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

from shared.errors import InputError

START, PAD, END = 0, 1, 2  # as in RoBERTa
UNKNOWN = 64  # numbers shared by all words that are not in the list; which one a word gets depends on its letters


class Vocabulary:
    """Words and answers of a run; part of its checkpoint.

    Word-level, from the pre-training text: start, padding, end, mask, 64 numbers for unknown words, then the words.
    With `folder` the tokens are those of a tokenizer saved there by `transformers`.

    Example:
        >>> words = Vocabulary(["a b c"])
        >>> words.encode("C? a", 6)
        [0, 70, 68, 2, 1, 1]
    """

    MASK = 3

    def __init__(self, texts: Iterable[str] = (), answers: Iterable[str] = (), folder: Path | None = None):
        self.words = sorted({word for text in texts for word in split_words(text)})
        self.answers = list(answers)
        self.folder = folder
        self._tokenizer = None

    @property
    def tokenizer(self):
        """The tokenizer of `folder`."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            except (OSError, ValueError) as error:
                raise InputError(f"{self.folder}: transformers can't read a tokenizer from it") from error
        return self._tokenizer

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokenizer) if self.folder is not None else 4 + UNKNOWN + len(self.words)

    @property
    def absent(self) -> tuple[int, int]:
        """First and last (excluded) number of the unknown words."""
        return (0, 0) if self.folder is not None else (4, 4 + UNKNOWN)

    @property
    def mask(self) -> int:
        return self.tokenizer.mask_token_id if self.folder is not None else self.MASK

    def encode(self, text: str, length: int) -> list[int]:
        """Token numbers of a text, cut or padded to `length`."""
        if self.folder is not None:
            return self.tokenizer(text, truncation=True, padding="max_length", max_length=length)["input_ids"]
        numbers = [self._number(word) for word in split_words(text)]
        numbers = [START, *numbers[: length - 2], END]
        return numbers + [PAD] * (length - len(numbers))

    def _number(self, word: str) -> int:
        place = bisect.bisect_left(self.words, word)
        if place < len(self.words) and self.words[place] == word:
            return 4 + UNKNOWN + place
        return 4 + zlib.crc32(word.encode("utf-8")) % UNKNOWN

    def state_dict(self) -> dict:
        return {"words": self.words, "answers": self.answers}

    def load_state_dict(self, state: dict) -> None:
        """
        Raises:
            ValueError, KeyError: this is no state of a vocabulary.
        """
        for kind in ("words", "answers"):
            found = state[kind]
            if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
                raise ValueError(f"its {kind} are no list of texts")
        self.words, self.answers = list(state["words"]), list(state["answers"])


def split_words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"[^\W_]+", text.lower())
