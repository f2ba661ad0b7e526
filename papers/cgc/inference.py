"""From a checkpoint and a volume to a mask, for every variant (M8)."""

from pathlib import Path

import torch
from torch import Tensor

from papers.cgc.autoencoder import residual
from papers.cgc.data import Case
from papers.cgc.model import sliding_window
from papers.cgc.mumford_shah import mumford_shah_proposal
from papers.cgc.proposal import clean_up, gmm_proposal
from papers.cgc.train import Config, build_model, proposal_rule
from shared.checkpoints import load_checkpoint, load_config
from shared.errors import InputError


def load_model(checkpoint: Path, device: torch.device):
    """The network of a checkpoint in evaluation mode (None for the mixture, which has none) and its configuration.

    Raises:
        InputError: no checkpoint of this paper.
    """
    content = load_checkpoint(checkpoint, "cgc")
    config = load_config(content, Config, checkpoint)
    if not content["models"]:
        return None, config
    state = content["models"][0]
    channels = next(value.shape[1] for value in state.values() if value.dim() == 5)
    piecewise = tuple(state["piecewise"].tolist()) if "piecewise" in state else (0,)
    model = build_model(config, channels, tuple(state["spacing_mm"].tolist()), piecewise)
    model.load_state_dict(state)
    return model.to(device).eval(), config


def check_fits(model, case: Case) -> None:
    """The volume has the channels and about the spacing that the network was trained with.

    Raises:
        InputError: it has not.
    """
    if model is None:
        return
    channels = next(parameter.shape[1] for parameter in model.parameters() if parameter.dim() == 5)
    if channels != case.image.shape[0]:
        raise InputError(
            f"{case.original.path}: the network was trained with {channels} modalities, here are "
            f"{case.image.shape[0]} ({', '.join(case.modalities)})"
        )
    trained = model.spacing_mm.tolist()
    if any(not 0.7 < now / then < 1.43 for now, then in zip(case.spacing, trained)):
        raise InputError(
            f"{case.original.path}: the spacing is {_mm(case.spacing)} mm (z, y, x) and the network was trained at "
            f"{_mm(trained)} mm; resample the scan first (shared.resample.resample_to_spacing)"
        )


def _mm(spacing) -> str:
    return " x ".join(f"{value:.2g}" for value in spacing)


@torch.no_grad()
def reconstruct(model, config: Config, case: Case, device: torch.device) -> Tensor:
    """The autoencoder's reconstruction of a volume, (C, D, H, W)."""
    return sliding_window(lambda x: model(x.to(device)), case.image, config.patch, config.overlap)


@torch.no_grad()
def lesion_probability(model, config: Config, case: Case, device: torch.device) -> Tensor:
    """Probability of lesion, float32 (D, H, W): the backbone alone, sliding window (M8)."""
    windows = sliding_window(
        lambda x: model.backbone(x.to(device))[0].float().softmax(1), case.image, config.patch, config.overlap
    )
    return windows[1]


@torch.no_grad()
def predict_mask(model, config: Config, case: Case, device: torch.device) -> Tensor:
    """The lesion of a volume, bool (D, H, W): P of its method for a proposal, else the network's.

    Raises:
        InputError: the volume does not fit the network.
    """
    check_fits(model, case)
    rule = proposal_rule(config)
    if config.method == "gmm":
        return gmm_proposal(case, rule, config.seed)
    if config.method == "mumford_shah":
        segments = sliding_window(
            lambda x: model(x.to(device)).float().softmax(1), case.image, config.patch, config.overlap
        )
        return mumford_shah_proposal(segments, case, rule)
    if config.method == "autoencoder":
        difference = residual(case, reconstruct(model, config, case, device))
        brain = case.brain.numpy()
        return torch.from_numpy(clean_up((difference > float(model.threshold)) & brain, brain, rule))
    return (lesion_probability(model, config, case, device) > 0.5) & case.brain
