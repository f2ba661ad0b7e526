"""From a trained network and a volume to a mask, for every variant (M8)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from papers.cgc.autoencoder import residual
from papers.cgc.brightness import brightness, threshold_without_labels
from papers.cgc.data import Case
from papers.cgc.mumford_shah import mumford_shah_proposal
from papers.cgc.proposal import ProposalRule, clean_up, gmm_proposal
from shared.finite import finite


def sliding_window(predict, image: Tensor, patch: tuple[int, int, int], overlap: float, batch: int = 8) -> Tensor:
    """Average of overlapping windows over a volume (M8), windows weighted by a Gaussian around their middle.

    Args:
        predict: (B, C, *patch) -> (B, K, *patch).
        image: (C, D, H, W), at least as large as a window.
        patch: size of a window.
        overlap: fraction by which windows overlap at least, in [0, 1).
        batch: windows at a time.

    Returns:
        float32 (K, D, H, W) on the CPU.
    """
    if any(n < window for n, window in zip(image.shape[1:], patch)):
        raise ValueError(f"a volume {tuple(image.shape[1:])} is smaller than a window {tuple(patch)}")
    starts = []
    for n, window in zip(image.shape[1:], patch):
        step = max(1, int(window * (1 - overlap)))
        count = -(-(n - window) // step) + 1
        starts.append([round(i * (n - window) / max(count - 1, 1)) for i in range(count)])
    places = [
        tuple(slice(s, s + window) for s, window in zip((z, y, x), patch))
        for z in starts[0]
        for y in starts[1]
        for x in starts[2]
    ]
    bells = [torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 4)) ** 2) for n in patch]
    weight = bells[0][:, None, None] * bells[1][None, :, None] * bells[2]
    total, weights = None, torch.zeros(image.shape[1:])
    for first in range(0, len(places), batch):
        some = places[first : first + batch]
        windows = predict(torch.stack([image[(slice(None), *place)] for place in some])).float().cpu()
        if total is None:
            total = torch.zeros(windows.shape[1], *image.shape[1:])
        for place, window in zip(some, windows):
            total[(slice(None), *place)] += window * weight
            weights[place] += weight
    return total / weights


@torch.no_grad()
def reconstruct(model, config, case: Case, device: torch.device) -> Tensor:
    """The autoencoder's reconstruction of a volume, (C, D, H, W)."""
    found = sliding_window(lambda x: model(x.to(device)), case.image, config.patch, config.overlap)
    return finite(found, f"the reconstruction of {case.name}")


@torch.no_grad()
def lesion_probability(model, config, case: Case, device: torch.device) -> Tensor:
    """Probability of lesion, float32 (D, H, W): the backbone alone, sliding window (M8); or that of boosting."""
    if config.method == "boosting":
        return finite(model.probability(case), f"the probability of lesion of {case.name}")
    windows = sliding_window(
        lambda x: model.backbone(x.to(device))[0].float().softmax(1), case.image, config.patch, config.overlap
    )
    return finite(windows[1], f"the probability of lesion of {case.name}")


@torch.no_grad()
def predict_mask(model, config, case: Case, device: torch.device) -> Tensor:
    """The lesion of a volume, bool (D, H, W): P of its method for a proposal, else the network's."""
    rule, brain = ProposalRule.of(config), case.brain.numpy()
    if config.method == "gmm":
        return gmm_proposal(case, rule)
    if config.method == "mumford_shah":
        segments = sliding_window(
            lambda x: model(x.to(device)).float().softmax(1), case.image, config.patch, config.overlap
        )
        return mumford_shah_proposal(finite(segments, f"the segments of {case.name}"), case, rule)
    if config.method in ("autoencoder", "brightness"):
        values = brightness(case)
        if config.method == "autoencoder":
            values = residual(case, reconstruct(model, config, case, device), config.median)
        return torch.from_numpy(clean_up((values > float(model.threshold)) & brain, brain, rule))
    return (lesion_probability(model, config, case, device) > 0.5) & case.brain


def set_threshold(
    model: nn.Module, config, cases: Iterable[Case], proposals: list[Tensor], device: torch.device
) -> None:
    """`model.threshold`, without labels: the share of brain that it marks in training is the share that P has."""
    values, brains, share = [], [], []
    model.eval()
    for case, proposal in zip(cases, proposals):
        with_network = config.method == "autoencoder"
        if with_network:
            values.append(residual(case, reconstruct(model, config, case, device), config.median))
        else:
            values.append(brightness(case))
        brains.append(case.brain.numpy())
        share.append(float(proposal.sum() / case.brain.sum()))
    model.train()
    model.threshold.fill_(threshold_without_labels(values, brains, sum(share) / len(share)))
