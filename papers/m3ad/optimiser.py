"""Which parameters are trained with which learning rate, and how the rate changes (M9, section 3.2)."""

import torch
from torch import nn


def parameter_groups(config, model: nn.Module) -> list[dict]:
    """Trained parameters with their learning rates; no weight decay on biases and layer norms.

    Args:
        config: the settings of `train.Config`.
        model: `Pretraining`, or `M3AD` after `prepare_tuning`.
    """
    groups: dict[tuple[float, float], list] = {}
    adapters = {"head": config.head_lr, "adapters": config.lr}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if config.stage == "pretrain":
            lr = config.pretrain_lr
        elif config.tuning != "full":
            lr = adapters[config.tuning]
        else:
            cross = "text_" in name or "image_" in name  # not the type embedding, in the released code
            factor = config.full_head_factor if name.startswith("head.") else config.full_cross_factor if cross else 1
            lr = config.full_lr * factor
        decay = config.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def optimizer_and_schedule(config, model: nn.Module, steps: int):
    """AdamW with warm-up and linear decay."""
    optimizer = torch.optim.AdamW(parameter_groups(config, model), lr=config.lr, betas=(0.9, 0.98), eps=1e-8)
    warm = max(1, round(config.warmup * steps))

    def factor(step: int) -> float:
        return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
