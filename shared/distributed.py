"""Several processes that train one model: sums over all of them, synchronised batch norm, gathered batches."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverProcesses(torch.autograd.Function):
    """all_reduce whose gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all processes on CPU (gloo), where `torch.nn.SyncBatchNorm` does not run."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, found {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        moments = torch.cat(
            [input.sum(dims), (input * input).sum(dims), input.new_ones(1) * (input.numel() / input.shape[1])]
        )
        total, squares, count = _SumOverProcesses.apply(moments).split([input.shape[1], input.shape[1], 1])
        mean = total / count
        variance = squares / count - mean * mean
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                weight = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, weight)
                self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), weight)
        output = (input - mean.view(shape)) * torch.rsqrt(variance.view(shape) + self.eps)
        return output * self.weight.view(shape) + self.bias.view(shape) if self.affine else output


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace batch-norm layers by ones that share their statistics over all processes; weights are kept."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            synced = SyncedBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            synced.load_state_dict(child.state_dict())
            setattr(module, name, synced)
        else:
            synchronise_batch_norm(child, device)
    return module


def gather(tensor: Tensor) -> Tensor:
    """Concatenate `(B, ...)` of all processes to `(world * B, ...)`, differentiably; one process: as it is.

    For losses over the whole batch, such as contrastive ones. The gradient is that of the mean over
    processes of the loss computed in each, which is what DistributedDataParallel averages.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    rank, world = dist.get_rank(), dist.get_world_size()
    slots = [tensor if rank == other else torch.zeros_like(tensor) for other in range(world)]
    return _SumOverProcesses.apply(torch.cat(slots))
