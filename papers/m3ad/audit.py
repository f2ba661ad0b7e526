"""Parameters and memory of every setting at the paper's sizes, counted without any weights (on the meta device)."""

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import torch
from torch import Tensor

from papers.m3ad.backbone import UNUSED_PARAMETERS
from papers.m3ad.m3ae import M3AE, Sizes
from papers.m3ad.model import M3AD, PLACES, answer_loss, prepare_tuning

PAPER_HEADS = {"VQA-RAD": 498, "SLAKE-EN": 222, "MELINDA": 7}
"""answers or classes of the data sets whose head the printed shares confirm"""
PRINTED_SHARES = {
    "head": {"VQA-RAD": 0.90, "SLAKE-EN": 0.78, "MELINDA": 0.68},
    "gen": {"VQA-RAD": 3.96, "SLAKE-EN": 3.85, "MELINDA": 3.76},
    "full": {"VQA-RAD": 4.16, "SLAKE-EN": 4.04, "MELINDA": 3.95},
}
"""variant -> "Params (%)" of Tables 1, 2 and 4"""
AUDITED = ("head", "vision", "language", "cross", "gen", "full", "ft")
RUN_BATCH = 8  # of the memory at the run's own sizes
TEXT_TOKENS = 32
BYTES = 4  # of a float32 number; AdamW keeps two of them per trained parameter


@dataclass(frozen=True)
class Setting:
    """What is trained, as for `model.prepare_tuning`, in its order."""

    tuning: str
    fusion: bool = False
    places: tuple[str, ...] = PLACES
    bottleneck: int = 64
    fusion_heads: int = 8
    train_poolers: bool = True

    def prepared(self, sizes: Sizes, answers: int) -> M3AD:
        """The model, without any weights."""
        with torch.device("meta"):
            model = M3AD(M3AE(sizes), answers)
            prepare_tuning(model, *(getattr(self, field.name) for field in fields(self)))
        return model


@dataclass(frozen=True)
class Audit:
    """Counts of one setting."""

    trained: int
    """parameters that are trained"""
    general: int
    """of them, in general adapters"""
    fusion: int
    """of them, in modality-fusion adapters"""
    all_of_full: int
    """parameters of the model that full fine-tuning trains, with those of the released class that nothing uses"""
    weights: int
    """bytes of the parameters that are used"""
    saved: int
    """bytes of what one batch keeps for its backward pass"""

    @property
    def share(self) -> float:
        """Trained parameters in percent of all (the paper's "Params (%)")."""
        return 100 * self.trained / self.all_of_full

    @property
    def fusion_share(self) -> float:
        """Modality-fusion adapters in percent of all."""
        return 100 * self.fusion / self.all_of_full

    @property
    def training_bytes(self) -> int:
        """Saved tensors, gradients and AdamW's two moments, in bytes; without the weights themselves."""
        return self.saved + 3 * BYTES * self.trained


class SavedBytes:
    """Context that counts the bytes of the tensors that autograd keeps; each storage once, parameters never."""

    def __init__(self, model: torch.nn.Module):
        held = [parameter.untyped_storage() for parameter in model.parameters()]
        # Storages are held, so that none of these addresses is given to another one meanwhile.
        self._seen = {storage._cdata: storage for storage in held}
        self.total = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self.total += storage.nbytes()
        return tensor

    def __enter__(self) -> "SavedBytes":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)


def saved_bytes(model: M3AD, batch: int, text_tokens: int) -> int:
    """Bytes that one training batch keeps for its backward pass. `model` may be on the meta device."""
    parameter = next(model.parameters())
    size = model.backbone.sizes.image
    image = torch.zeros(batch, 3, size, size, device=parameter.device)
    tokens = torch.full((batch, text_tokens), 5, device=parameter.device)
    mask = torch.ones(batch, text_tokens, dtype=torch.bool, device=parameter.device)
    model.train()
    with SavedBytes(model) as saved, torch.enable_grad():
        logits = model(image, tokens, mask)
        loss = answer_loss(logits, torch.zeros(batch, dtype=torch.long, device=parameter.device))
    del loss
    return saved.total


def count(model: M3AD, batch: int = 0, text_tokens: int = TEXT_TOKENS, unused: int = 0) -> Audit:
    """Audit of a model that `prepare_tuning` has been applied to.

    Args:
        model: on any device.
        batch: images per update; 0 leaves the memory out.
        text_tokens: of each text.
        unused: parameters of the full model that this class leaves out.
    """
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    general = sum(size for name, size in trained.items() if ".adapter." in name)
    fusion = sum(size for name, size in trained.items() if ".fusion." in name)
    inserted = sum(p.numel() for name, p in model.named_parameters() if ".adapter." in name or ".fusion." in name)
    everything = sum(p.numel() for p in model.parameters())
    total = sum(trained.values())
    full = everything - inserted + unused
    if total == everything and not inserted:  # full fine-tuning counts what nothing uses as trained, too
        total = full
    saved = saved_bytes(model, batch, text_tokens) if batch else 0
    return Audit(total, general, fusion, full, BYTES * everything, saved)


@lru_cache(maxsize=2)
def _paper_model(setting: Setting) -> M3AD:
    """The paper's model, with a head for one answer."""
    return setting.prepared(Sizes(), 1)


def at_paper_sizes(setting: Setting, answers: int, batch: int = 0) -> Audit:
    """Audit of one setting of the paper's model, of 345 million parameters, none of which takes any memory.

    Example:
        >>> round(at_paper_sizes(Setting("head"), 498).share, 2)
        0.9
    """
    model = _paper_model(setting)
    model.head[-1] = torch.nn.Linear(model.head[-1].in_features, answers, device="meta")
    return count(model, batch, TEXT_TOKENS, UNUSED_PARAMETERS)


# --- tables ----------------------------------------------------------------------------------------------


def setting_of(config) -> Setting:
    """What a configuration trains, at its own bottleneck and heads."""
    places = tuple(config.places)
    return Setting(
        config.tuning, config.fusion, places, config.bottleneck, config.fusion_heads, config.train_poolers
    )  # fmt: skip


def audit_rows(config, sizes: Sizes, answers: int) -> list[dict]:
    """Rows of metrics.csv: shares of trained parameters at the paper's sizes, and the memory of training relative to
    full fine-tuning, at the run's own sizes."""
    own = setting_of(config)
    of_paper = replace(own, bottleneck=Setting.bottleneck, fusion_heads=Setting.fusion_heads)
    rows = []
    for name, classes in PAPER_HEADS.items():
        found = at_paper_sizes(of_paper, classes)
        row = {"case": f"audit {name}", "params_pct": found.share, "fusion_pct": found.fusion_share}
        printed = PRINTED_SHARES.get(config.variant, {}).get(name)
        if printed is not None:
            row["params_error_points"] = round(round(found.share, 2) - printed, 4)
        rows.append(row)
    used, full = (
        count(setting.prepared(sizes, answers), RUN_BATCH, config.text_length).training_bytes
        for setting in (own, Setting("full"))
    )
    return [*rows, {"case": "memory", "memory_pct": 100 * used / full}]


def audit_table(batch: int = 64, variants: tuple[str, ...] = AUDITED) -> list[dict[str, str]]:
    """Parameters and memory of variants at the paper's sizes, beside the printed shares.

    Args:
        batch: images per update.
        variants: names.
    """
    from papers.m3ad.train import VARIANTS

    full = at_paper_sizes(Setting("full"), PAPER_HEADS["VQA-RAD"], batch)
    table = []
    for variant in variants:
        options = VARIANTS[variant]
        setting = Setting(options.get("tuning", "adapters"), options.get("fusion", True), options.get("places", PLACES))
        found = at_paper_sizes(setting, PAPER_HEADS["VQA-RAD"], batch)
        shares = {f"{name} %": f"{at_paper_sizes(setting, heads).share:.2f}" for name, heads in PAPER_HEADS.items()}
        table.append({
            "setting": variant, "trained": str(found.trained), **shares,
            "printed": " ".join(f"{value:.2f}" for value in PRINTED_SHARES.get(variant, {}).values()) or "-",
            "weights GiB": f"{found.weights / 2**30:.2f}", "training GiB": f"{found.training_bytes / 2**30:.2f}",
            "memory %": f"{100 * found.training_bytes / full.training_bytes:.2f}",
        })  # fmt: skip
    return table
