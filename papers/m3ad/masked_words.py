"""How well a pre-trained backbone knows the words of a caption: a masked one, out of the image and the others."""

from pathlib import Path

import torch

from papers.m3ad.answering import AT_ONCE
from papers.m3ad.data import read_captions, split_captions
from papers.m3ad.pretraining import Pretraining
from papers.m3ad.samples import SPECIAL_TOKENS, Images, normalise, trim
from papers.m3ad.vocabulary import Vocabulary
from shared.errors import InputError
from shared.finite import finite


def masked_words(data: Path, model: Pretraining, config, vocabulary: Vocabulary, device: torch.device) -> list[dict]:
    """Rows of a backbone: a word of each held-out caption, masked, out of the image and the other words.

    Released weights have no head for words; their row is empty of that column.
    """
    if config.text_folder is not None:
        return [{"case": "caption/none"}]
    _, captions = split_captions(read_captions(data, config.layout))
    if not captions:
        raise InputError(f"{data} has captions of fewer than ten images; none is held out to test the backbone on")
    images = Images([caption.image for caption in captions], config.image_size)
    tokens = torch.tensor([vocabulary.encode(caption.text, config.text_length) for caption in captions])
    generator = torch.Generator().manual_seed(0)
    special = (tokens[..., None] == torch.tensor(SPECIAL_TOKENS)).any(-1)
    # A word of each caption is masked, drawn at random: the same for every backbone of a data set.
    place = torch.rand(tokens.shape, generator=generator).masked_fill(special, -1).argmax(1)
    rows = torch.arange(len(tokens))
    truth = tokens[rows, place]
    hidden = tokens.clone()
    hidden[rows, place] = vocabulary.mask
    found = []
    with torch.no_grad():
        for some in rows.split(AT_ONCE):
            batch = torch.stack([normalise(images(captions[k].image)) for k in some.tolist()])
            length = trim(hidden[some])
            words, _ = model(batch.to(device), hidden[some, :length].to(device))
            words = finite(words[torch.arange(len(some)), place[some].to(device)], "the scores of the masked words")
            found.append(words.argmax(-1).cpu())
    hits = torch.cat(found) == truth
    return [{"case": caption.case, "masked_word_pct": 100.0 * bool(hit)} for caption, hit in zip(captions, hits)]
