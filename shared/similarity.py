"""The structural similarity of images (SSIM). The conventions are those of `shared.metrics`."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from shared.metrics import check_data_range, check_images

__all__ = ["ssim"]

# Voxels per moment that SSIM works on at a time: small enough for the cache of one core.
_SSIM_CHUNK = 1 << 17


def ssim(
    prediction: Tensor,
    truth: Tensor,
    *,
    data_range: float | Tensor,
    window: str = "gaussian",
    sigma: float = 1.5,
    win_size: int = 7,
    sample_covariance: bool | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Tensor:
    """The mean structural similarity of each case as (B,), at most 1 (Wang et al. 2004,
    doi:10.1109/TIP.2003.819861).

    It is that of `skimage.metrics.structural_similarity`: the mean leaves out the voxels whose window reaches
    over the border. For images with three spatial axes the window is three-dimensional; fastMRI's SSIM is the
    mean over 2-D slices instead, which is `ssim(x.flatten(0, 1), ...)`.

    The moments are those of float64 values from which the image's mean was taken, so that a variance isn't lost
    in the square of a large mean: a CT stored with an offset of 1e6 has the SSIM that it has without rounding.
    The result is differentiable in both images; `1 - ssim(...).mean()` is a loss.

    Args:
        prediction, truth: intensities of shape (B, H, W) or (B, D, H, W) of any real type, at least as large
            as the window along each spatial axis.
        data_range: the span of the values that the truth can have, as for `psnr`. There's no default.
        window: "gaussian" is that of the paper, of the width `sigma` in voxels, cut off at 3.5 sigma (11 taps
            for 1.5). "uniform" is scikit-image's default, a box of `win_size` voxels along each axis.
        sigma: the width of the Gaussian window; ignored for the uniform one.
        win_size: the odd size of the uniform window, at least 3; ignored for the Gaussian one.
        sample_covariance: whether (co)variances are those of a sample, multiplied by N / (N - 1) for the N
            voxels of the window. None means what's usual: False for the Gaussian window, as in the paper, and
            True for the uniform one. scikit-image has True for both unless `use_sample_covariance=False`.
        k1, k2: the constants of the paper, not negative.

    Raises:
        ValueError: as for `psnr`; neither two nor three spatial axes; images smaller than the window; an
            unknown window, an even or too small `win_size`, a `sigma` that isn't positive, a negative
            constant.

    >>> x = torch.rand(2, 16, 16, 16)
    >>> ssim(x, x, data_range=1.0)
    tensor([1., 1.], dtype=torch.float64)
    """
    x, y = check_images(prediction, truth)
    span = check_data_range(data_range, x)
    axes = prediction.ndim - 1
    if axes not in (2, 3):
        raise ValueError(f"SSIM needs two or three spatial axes, got the shape {tuple(prediction.shape)}.")
    if k1 < 0 or k2 < 0:
        raise ValueError(f"k1 and k2 must not be negative, got {k1} and {k2}.")
    taps = _ssim_taps(window, sigma, win_size)
    size = len(taps)
    if min(prediction.shape[1:]) < size:
        raise ValueError(
            f"Images must have at least {size} voxels along each spatial axis, "
            f"got {tuple(prediction.shape)}; channels belong into the batch axis."
        )
    if sample_covariance is None:
        sample_covariance = window == "uniform"
    norm = size**axes / (size**axes - 1) if sample_covariance else 1.0

    # Chunks of cases and of rows along the first spatial axis, such that all moments of a chunk stay in the
    # cache.
    shape = prediction.shape[1:]
    x, y = x.reshape(prediction.shape), y.reshape(prediction.shape)
    rows = shape[0] - size + 1
    chunk = _SSIM_CHUNK * (1 if x.device.type == "cpu" else 64)
    rows_at_once = min(rows, max(8, chunk // (shape.numel() // shape[0])))
    cases_at_once = max(1, chunk // shape.numel())
    groups = [slice(case, case + cases_at_once) for case in range(0, len(x), cases_at_once)]
    starts = range(0, rows, rows_at_once)
    constants = [[(k * span[some]).square().view(-1, *[1] * axes) for k in (k1, k2)] for some in groups]
    # No moment but the mean depends on where zero lies, so the shift is no function of the images to differentiate.
    shifts = [im.detach().mean(list(range(1, im.ndim)), keepdim=True, dtype=torch.float64) for im in (x, y)]

    def chunk_sum(job: tuple[int, int]) -> Tensor:
        group, start = job
        window_rows = slice(start, min(start + rows_at_once, rows) + size - 1)
        some = groups[group]
        a, b = (image[some, window_rows].double() - shift[some] for image, shift in zip((x, y), shifts))
        means = [shift[some] for shift in shifts]
        return _ssim_map(a, b, *means, taps, norm, *constants[group]).flatten(1).sum(1)

    jobs = [(group, start) for group in range(len(groups)) for start in starts]
    graph = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    if graph or x.device.type != "cpu":
        sums = [chunk_sum(job) for job in jobs]
    else:
        sums = _map_in_threads(chunk_sum, jobs)
    totals = [sum(sums[k * len(starts) : (k + 1) * len(starts)]) for k in range(len(groups))]
    return torch.cat(totals) / math.prod(n - size + 1 for n in shape)


def _map_in_threads(function: Callable, jobs: list) -> list[Tensor]:
    """The results of the jobs, without gradients, computed by as many threads as torch has for one operation.

    Each thread does its operations alone. Torch would share out every small operation among its threads and wait
    for the slowest, which on a busy machine takes ten times as long.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(jobs))

    def without_gradients(job) -> Tensor:
        with torch.no_grad():
            return function(job)

    if count <= 1:
        return [without_gradients(job) for job in jobs]
    try:
        # The number of threads belongs to the thread that sets it, but new threads start with the latest one.
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(without_gradients, jobs))
    finally:
        torch.set_num_threads(threads)


def _ssim_taps(window: str, sigma: float, win_size: int) -> list[float]:
    if window == "uniform":
        if win_size < 3 or win_size % 2 == 0:
            raise ValueError(f"win_size must be odd and at least 3, got {win_size}.")
        return [1 / win_size] * win_size
    if window != "gaussian":
        raise ValueError(f"window must be gaussian or uniform, got {window!r}.")
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be positive and finite, got {sigma}.")
    radius = int(3.5 * sigma + 0.5)
    if radius == 0:
        raise ValueError(f"sigma must be at least 0.15 voxels for a window of more than one, got {sigma}.")
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    return [tap / sum(taps) for tap in taps]


def _ssim_map(
    x: Tensor, y: Tensor, mean_x: Tensor, mean_y: Tensor, taps: list[float], norm: float, c1: Tensor, c2: Tensor
) -> Tensor:
    """SSIM of `x + mean_x` and `y + mean_y` at all voxels whose window is inside.

    The two variances occur only as their sum, hence four moments.
    """
    moments = torch.stack((x, y, x * x + y * y, x * y))
    for axis in range(2, moments.ndim):
        length = moments.shape[axis] - len(taps) + 1
        filtered = moments.narrow(axis, 0, length) * taps[0]
        for k, tap in enumerate(taps[1:], start=1):
            filtered.add_(moments.narrow(axis, k, length), alpha=tap)
        moments = filtered
    ux, uy, squares, uxy = moments.unbind()
    variances = norm * (squares - ux * ux - uy * uy)
    covariance = norm * (uxy - ux * uy)
    ux, uy = ux + mean_x, uy + mean_y
    numerator = (2 * ux * uy + c1) * (2 * covariance + c2)
    return numerator / ((ux * ux + uy * uy + c1) * (variances + c2))
