"""What is minimised: DKUXNet's losses over labelled and unlabelled crops together, and UA-MT's."""

import math

import torch
from torch import Tensor

from papers.dkuxnet.losses import (
    distribution_loss,
    gather_voxels,
    info_nce,
    pseudo_classes,
    rampup,
    sample_voxels,
    segmentation_loss,
    uncertainty_masked_mse,
)
from papers.dkuxnet.vnet import predictive_entropy
from shared.distributed import gather


def contrastive_losses(config, output, label: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """L_qdc and L_segc of a batch in which views 2b and 2b + 1 show crop b (M12, M13).

    Args:
        config: `train.Config`.
        output: `model.Output` of all views.
        label: (B, W, H, D), -1 where not labelled.
        key: (B, W, H, D), uniform random numbers that choose the voxels.
    """
    probabilities = output.logits.softmax(dim=1)
    first, second = probabilities[0::2], probabilities[1::2]
    classes = pseudo_classes((first, second), label, config.confidence)
    number = output.logits.shape[1]
    index, valid = sample_voxels(classes, key.flatten(1), config.sampled_voxels, number)

    def everywhere(x):  # of all processes, one row a voxel
        return gather(x).flatten(0, 1)

    chosen, valid = everywhere(classes.gather(1, index)), everywhere(valid.long()).bool()

    def contrast(first, second):
        pair = (everywhere(gather_voxels(maps, index)) for maps in (first, second))
        return info_nce(*pair, chosen, valid, config.temperature)

    return contrast(output.response[0::2], output.response[1::2]), contrast(first, second)


def dkuxnet_loss(config, model, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict]:
    """L_seg + w(t) (L_qdc + L_segc) and its parts for the log.

    Args:
        config: `train.Config`.
        model: the network.
        batch: of `data.together`.
        step: t.
    """
    label, key = batch["label"], batch["key"]
    output = model(batch["views"].flatten(0, 1))
    label_of_view = label.repeat_interleave(2, dim=0)
    seg = segmentation_loss(output.logits, label_of_view)
    of_layers = [distribution_loss(layer, label_of_view) for layer in output.layer_distributions]
    distribution = distribution_loss(output.distribution, label_of_view) + sum(of_layers) / len(of_layers)
    loss = seg + config.distribution_weight * distribution
    parts = {"seg": seg, "distribution": distribution}
    if config.use_qdc or config.use_segc:
        qdc, segc = contrastive_losses(config, output, label, key)
        weight = config.consistency_weight * rampup(step, config.ramp_fraction * config.steps)
        loss = loss + weight * (config.use_qdc * qdc + config.use_segc * segc)
        parts |= {"qdc": qdc, "segc": segc, "weight": weight}
    return loss, parts


def ua_mt_loss(config, model, teacher, batch: dict[str, Tensor], step: int, steps: int) -> tuple[Tensor, dict]:
    """Supervised loss on labelled crops, consistency with the teacher on unlabelled ones (UA-MT, eqs. 1 to 4).

    Args:
        config: `train.Config`.
        model, teacher: two V-Nets.
        batch: of `data.together`.
        step: t.
        steps: updates in all.
    """
    views, label = batch["views"], batch["label"]
    logits = model(views[:, 0])
    seg = segmentation_loss(logits, label)
    unlabelled = label.flatten(1).amin(1) < 0
    if not unlabelled.any():
        return seg, {"seg": seg}
    inputs = views[unlabelled, 1]
    with torch.no_grad():  # the target and all stochastic passes are one batch, as many copies of the crops
        copies = inputs.repeat(config.uncertainty_passes + 1, 1, 1, 1, 1)
        noise = (0.1 * torch.randn_like(copies)).clamp(-0.2, 0.2)
        noise[: len(inputs)] = 0
        target, *passes = teacher(copies + noise).float().split(len(inputs))
        entropy = predictive_entropy(torch.stack(passes).softmax(dim=2))
    threshold = (0.75 + 0.25 * rampup(step, steps)) * math.log(logits.shape[1])
    consistency = uncertainty_masked_mse(logits[unlabelled], target, entropy, threshold)
    weight = config.consistency_weight * rampup(step, config.ramp_fraction * steps)
    return seg + weight * consistency, {"seg": seg, "consistency": consistency, "weight": weight}
