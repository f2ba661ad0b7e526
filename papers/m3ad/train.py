"""Pre-train the stand-in backbone (or read a released one), and tune it for a task: head, adapters, or everything.

    python -m papers.m3ad.train --data DATA --out runs/backbone --variant pretrain
    python -m papers.m3ad.train --data DATA --out runs/task --variant full --init runs/backbone/checkpoint.pt

With `--profile paper --backbone m3ae.ckpt --text-folder roberta-base` the first command trains nothing: its checkpoint
holds the released weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.cli import RunConfig, train_command
from shared.errors import InputError


@dataclass
class Config(RunConfig):
    """M3AD: adapters for medical vision-and-language learning."""

    stage: Literal["pretrain", "tune", "lookup", "forest"] = "tune"
    """make a backbone, tune one for a task, or a control without one: look the answer up among those to the same
    training questions, or a random forest on a thumbnail and the words"""
    tuning: Literal["head", "adapters", "full"] = "adapters"
    """what is trained: the head alone, head and adapters, or everything (Fine-Tuning)"""
    fusion: bool = True
    """modality-fusion adapters beside the general ones: M3AD-Fus; without them M3AD-Gen"""
    places: tuple[str, ...] = ("vision", "language", "cross")
    """encoders with general adapters (Table 5: VAD, LAD, CAD)"""
    train_poolers: bool = True
    """with adapters, train the projections and poolers of the cross-modal encoder too (3.92 % of all at Gen; paper
    3.96 %, without them 3.24 %)"""
    bottleneck: int = 64
    """D_mid of both kinds of adapters (paper: 64)"""
    fusion_heads: int = 8
    """heads of the modality-fusion adapter's attention (paper: 8)"""
    use_image: bool = True
    """False shows a grey image instead: the text-only control"""
    layout: str = "auto"
    """vqa_rad, slake, medvqa_2019, melinda or auto"""
    answers: Literal["all", "train"] = "all"
    """where the closed list of answers comes from; all: test answers, too (released M3AE)"""
    image_size: int = 384
    """side of the square that images are resized to, pixels (released M3AE: 384)"""
    patch: int = 16
    """side of a patch, pixels (ViT-B/16: 16)"""
    width: int = 768
    """channels of all three encoders (768)"""
    heads: int = 12
    """attention heads of all three encoders (12)"""
    vision_layers: int = 11
    """blocks of the ViT (released M3AE: 11 of CLIP's 12)"""
    language_layers: int = 12
    """layers of RoBERTa (12)"""
    cross_layers: int = 6
    """blocks of the cross-modal encoder (6)"""
    text_length: int = 32
    """tokens of a text (32; MELINDA 128)"""
    dropout: float = 0.1
    """in RoBERTa and the cross-modal encoder (released M3AE: 0.1)"""
    crop: float = 1.0
    """least share of the image in a random crop (released M3AE: 0.9, on VQA-RAD 1, which is none)"""
    backbone: Path | None = None
    """released M3AE checkpoint"""
    vision_folder: Path | None = None
    """CLIP ViT in a folder of transformers"""
    text_folder: Path | None = None
    """RoBERTa in a folder of transformers; its tokenizer is used with --backbone, too"""
    masked: float = 0.15
    """share of the words masked in pre-training (M3AE: 0.15)"""
    blank: float = 0.0
    """share of the captions whose words are all masked, so that the image alone must tell them (M3AE: 0)"""
    mismatched: float = 0.5
    """share of the pre-training pairs with another image (M3AE: 0.5)"""
    pretrain_steps: int = 25000
    """updates of the stand-in backbone"""
    pretrain_lr: float = 1e-4
    """its largest learning rate"""
    lr: float = 1e-4
    """learning rate of head and adapters (paper: 1e-4)"""
    head_lr: float = 1e-4
    """learning rate where the head alone is trained (paper: 1e-4)"""
    full_lr: float = 5e-6
    """learning rate of the backbone in full fine-tuning (released M3AE: 5e-6)"""
    full_head_factor: float = 50.0
    """times that for the head (released M3AE: 50, MELINDA 10)"""
    full_cross_factor: float = 5.0
    """times that for the cross-modal encoder (released M3AE: 5)"""
    weight_decay: float = 0.01
    """of AdamW; none on biases and layer norms (released M3AE: 0.01)"""
    warmup: float = 0.1
    """share of the updates in which the learning rate rises; it falls linearly after that (released M3AE: 0.1)"""
    epochs: int = 50
    """passes over the training questions (released M3AE: VQA-RAD 50, SLAKE 15, VQA-Med-19 10, MELINDA 20)"""
    steps: int = 0
    """instead of epochs, a number of updates; 0 for epochs"""
    head_longer: float = 1.0
    """the head alone is trained for so many times as many updates (paper: as many)"""
    select: Literal["last", "best"] = "best"
    """weights that are evaluated: the last, or those of the epoch with the best validation accuracy"""


SMALL = {
    "answers": "train", "image_size": 48, "patch": 16, "width": 48, "heads": 4, "vision_layers": 2,
    "language_layers": 1, "cross_layers": 1, "text_length": 24, "dropout": 0.0, "bottleneck": 8, "fusion_heads": 2,
    "masked": 0.4, "blank": 0.5, "mismatched": 0.3, "batch_size": 16, "select": "last", "pretrain_lr": 2e-3,
    "lr": 2.5e-3, "head_lr": 5e-3, "head_longer": 16.0, "full_lr": 1e-3, "full_head_factor": 2.0,
    "full_cross_factor": 1.0,
}  # fmt: skip
PROFILES = {
    "smoke": {
        **SMALL, "image_size": 16, "patch": 8, "width": 16, "heads": 2, "vision_layers": 1, "language_layers": 1,
        "cross_layers": 1, "bottleneck": 4, "batch_size": 4, "pretrain_steps": 3, "steps": 4,
    },
    "cpu": {**SMALL, "pretrain_steps": 1500, "steps": 1000},
    "study": {**SMALL, "pretrain_steps": 1500, "steps": 1000},
    "paper": {"batch_size": 64},
}  # fmt: skip

VARIANTS = {
    "pretrain": {"stage": "pretrain"},
    "lookup": {"stage": "lookup"},
    "forest": {"stage": "forest"},
    "text_only": {"use_image": False},
    "head": {"tuning": "head", "fusion": False},
    "vision": {"fusion": False, "places": ("vision",)},
    "language": {"fusion": False, "places": ("language",)},
    "cross": {"fusion": False, "places": ("cross",)},
    "gen": {"fusion": False},
    "full": {},
    "ft": {"tuning": "full", "fusion": False},
}


def train(config: Config) -> None:
    """Run one stage; writes config.json, checkpoint.pt and log.csv to `config.out`."""
    {"pretrain": pretrain, "tune": tune, "lookup": control, "forest": control}[config.stage](config)


def control(config: Config) -> None:
    """The controls without a backbone. The table of `lookup` is in its checkpoint; the forest is grown in `evaluate`
    from the training questions there, see `answering.forest_answers`."""
    from papers.m3ad.answering import QuestionLookup
    from papers.m3ad.data import answer_list, read_questions
    from papers.m3ad.vocabulary import Vocabulary
    from shared import gpu

    parts = read_questions(config.data, config.layout)
    run = gpu.Run(config, paper="m3ad")
    kept = {"lookup": QuestionLookup(parts["train"])} if config.stage == "lookup" else {}
    run.restore(vocabulary=Vocabulary(answers=answer_list(parts, "train")), **kept)
    run.save()


def pretrain(config: Config) -> None:
    """The stand-in backbone on captions; or, with `backbone` or folders, the released weights and no update."""
    from papers.m3ad.backbone import load_folders, load_m3ae
    from papers.m3ad.data import find_layout, read_captions, split_captions
    from papers.m3ad.network import build_model
    from papers.m3ad.optimiser import optimizer_and_schedule
    from papers.m3ad.pretraining import pretraining_loss
    from papers.m3ad.samples import Captions, Images, trim
    from papers.m3ad.vocabulary import Vocabulary
    from shared import gpu

    find_layout(config.data, config.layout)
    released = any(path is not None for path in (config.backbone, config.vision_folder, config.text_folder))
    if released and config.text_folder is None:
        raise InputError("released weights need RoBERTa's tokenizer: give its folder as --text-folder")
    captions = [] if released else read_captions(config.data, config.layout)
    vocabulary = Vocabulary((caption.text for caption in captions), folder=config.text_folder)
    training, _ = split_captions(captions)
    images = Images([caption.image for caption in training], config.image_size)

    run = gpu.Run(config, paper="m3ad")
    network = build_model(config, vocabulary)
    if config.backbone is not None:
        load_m3ae(network.backbone, config.backbone)
    elif released:
        load_folders(network.backbone, config.vision_folder, config.text_folder)
    model = run.prepare(network)
    optimizer, schedule = optimizer_and_schedule(config, network, config.pretrain_steps)
    run.restore(optimizer=optimizer, schedule=schedule, vocabulary=vocabulary)
    if released:
        run.save()
        return
    dataset = Captions(training, images, vocabulary, config.text_length, config.masked, config.blank, config.mismatched)
    for _, batch in run.batches(dataset, config.pretrain_steps):
        length = trim(batch["tokens"])
        with run.autocast():
            logits = model(batch["image"], batch["tokens"][:, :length])
        truth = (batch["labels"][:, :length], batch["matches"])
        parts = pretraining_loss(*(part.float() for part in logits), *truth)
        run.update(sum(parts), optimizer, schedule, clip=1.0, words=parts[0], matching=parts[1])


def tune(config: Config) -> None:
    """Tune for a task (M9, M10) from the backbone `config.init`."""
    import torch.nn.functional as F

    from papers.m3ad.answering import Best, accuracy_of
    from papers.m3ad.backbone import pretrained
    from papers.m3ad.data import answer_list, find_layout, read_questions
    from papers.m3ad.model import answer_loss
    from papers.m3ad.network import build_model, draw_added
    from papers.m3ad.optimiser import optimizer_and_schedule
    from papers.m3ad.samples import Images, Questions, trim
    from papers.m3ad.vocabulary import Vocabulary
    from shared import gpu
    from shared.checkpoints import fitting

    layout, _ = find_layout(config.data, config.layout)
    parts = read_questions(config.data, config.layout)
    shown = [q.image for split in ("train", "val") for q in parts[split]] if config.use_image else []
    images = Images(shown, config.image_size)
    weights, words, source = pretrained(config.init)
    if config.text_folder is None and source.get("text_folder") is not None:
        config.text_folder = Path(source["text_folder"])
    vocabulary = Vocabulary(folder=config.text_folder)
    with fitting(config.init):
        vocabulary.load_state_dict({"words": words["words"], "answers": answer_list(parts, config.answers)})
    used = [q for q in parts["train"] if q.answer in set(vocabulary.answers)]
    data = (images, vocabulary, config.text_length)
    dataset = Questions(used, *data, config.crop, config.use_image)
    validation = Questions(parts["val"], *data, use_image=config.use_image) if config.select == "best" else None
    per_epoch = max(1, len(dataset) // config.batch_size)
    steps = config.steps or config.epochs * per_epoch
    if config.tuning == "head":
        steps = max(1, round(steps * config.head_longer))

    run = gpu.Run(config, paper="m3ad")
    try:
        network = draw_added(build_model(config, vocabulary, weights), config.seed)
    except RuntimeError as error:
        raise InputError(f"{config.init}: its backbone has other sizes than this configuration") from error
    model = run.prepare(network)
    optimizer, schedule = optimizer_and_schedule(config, network, steps)
    best = Best()
    run.restore(optimizer=optimizer, schedule=schedule, vocabulary=vocabulary, best=best)

    criterion = F.cross_entropy if layout == "melinda" else answer_loss
    for step, batch in run.batches(dataset, steps):
        with run.autocast():
            logits = model(batch["image"], batch["tokens"][:, : trim(batch["tokens"])])
        run.update(criterion(logits.float(), batch["answer"]), optimizer, schedule, clip=1.0)
        if validation is not None and ((step + 1) % per_epoch == 0 or step + 1 == steps):
            best.offer(accuracy_of(network, validation, run.device), network)
            network.train()


def main(argv: list[str] | None = None) -> None:
    train_command(Config, PROFILES, VARIANTS, train, argv)


if __name__ == "__main__":
    main()
