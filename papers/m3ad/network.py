"""The network of a configuration."""

from torch import Tensor, nn

from papers.m3ad.m3ae import M3AE, Sizes
from papers.m3ad.model import M3AD, PLACES, Down, Up, prepare_tuning
from papers.m3ad.pretraining import Pretraining
from papers.m3ad.vocabulary import Vocabulary
from shared.errors import InputError
from shared.gpu import initialise_by_name, stable_seed


def sizes_of(config, vocabulary: int) -> Sizes:
    """Sizes of the backbone.

    Args:
        config: the settings of `train.Config`.
        vocabulary: number of tokens.

    Raises:
        InputError: settings that don't fit each other.
    """
    for whole, part in (("image_size", "patch"), ("width", "heads")):
        a, b = getattr(config, whole), getattr(config, part)
        if a < 1 or b < 1 or a % b:
            raise InputError(f"--{whole.replace('_', '-')} {a} is no multiple of --{part} {b}")
    released = config.text_folder is not None
    return Sizes(
        config.image_size, config.patch, config.width, config.heads, config.vision_layers, config.language_layers,
        config.cross_layers, vocabulary, 514 if released else config.text_length + 2, config.dropout,
    )  # fmt: skip


def build_model(config, vocabulary: Vocabulary, weights: dict[str, Tensor] | None = None) -> nn.Module:
    """The network, on the CPU, with the tuning's adapters in place.

    Args:
        config: the settings of `train.Config`.
        vocabulary: of words and answers.
        weights: of a pre-trained backbone.

    Raises:
        InputError: settings that don't fit each other.
        RuntimeError: weights of other sizes.
    """
    if config.stage == "tune":
        if not config.places or set(config.places) - set(PLACES):
            raise InputError(f"--places {' '.join(config.places)}: expected some of {', '.join(PLACES)}")
        if config.tuning == "adapters" and (config.fusion_heads < 1 or config.bottleneck % config.fusion_heads):
            raise InputError(f"--bottleneck {config.bottleneck} is no multiple of --fusion-heads {config.fusion_heads}")
    backbone = M3AE(sizes_of(config, len(vocabulary)))
    if weights is not None:
        backbone.load_state_dict(weights)
    if config.stage == "pretrain":
        return Pretraining(backbone, vocabulary.absent)
    model = M3AD(backbone, len(vocabulary.answers))
    settings = (config.tuning, config.fusion, config.places, config.bottleneck, config.fusion_heads)
    prepare_tuning(model, *settings, config.train_poolers)
    return model


def draw_added(model: M3AD, seed: int) -> M3AD:
    """Head and adapters drawn by seed and name, so that they are the same in all variants that have them; the backbone
    keeps its weights, which are the same in all variants already."""
    for name, module in model.named_modules():
        if name == "head" or isinstance(module, Down | Up | nn.MultiheadAttention):
            initialise_by_name(module, stable_seed(seed, name))
    return model
