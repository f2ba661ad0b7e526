"""k-space in the centre and outside of it: the downsampler d, zero-filling, and central k-space replacement.

An image of n rows has the whole frequencies -n/2 ... n/2. "The central k-space" of an h x w image is all (k, l) with
|k| < h/2 and |l| < w/2. For an even h that leaves out the Nyquist frequency -h/2, which has no partner +h/2 in the low
image: with it a low image could not be real, nor the replacement exact. Transforms are normalised so that a frequency
has the same value in an image of any size (norm="forward"): no factors r² are needed. Sample 0 of the low image lies
on sample 0 of the high one, and sample n on sample r n.
"""

import torch
from torch import Tensor


def central(length: int) -> Tensor:
    """Whole frequencies k with |k| < length / 2, in the order of the FFT.

    >>> central(4).tolist(), central(5).tolist()
    ([0, 1, -1], [0, 1, 2, -2, -1])
    """
    most = (length - 1) // 2
    return torch.cat([torch.arange(most + 1), torch.arange(-most, 0)])


def centre_of(size: tuple[int, int], low: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows (a, 1) and columns (b) of the FFT of an image of `size` that are in the central k-space of `low`."""
    rows, columns = (central(length) % full for length, full in zip(low, size))
    return rows[:, None], columns


def with_centre(kspace: Tensor, source: Tensor, low: tuple[int, int]) -> Tensor:
    """`kspace` (..., A, B) with its central part taken from `source` (..., C, D), both in the order of the FFT."""
    rows, columns = centre_of(kspace.shape[-2:], low)
    from_rows, from_columns = centre_of(source.shape[-2:], low)
    kspace = kspace.clone()
    kspace[..., rows, columns] = source[..., from_rows, from_columns]
    return kspace


def downsample(image: Tensor, factor: int) -> Tensor:
    """d of equation 1 (M1): only the central k-space is kept, and transformed back onto a smaller grid.

    Args:
        image: (..., r h, r w) real.
        factor: r.

    Returns:
        (..., h, w), differentiable.

    >>> downsample(torch.full((8, 8), 3.0), 2)[0]
    tensor([3., 3., 3., 3.])
    """
    low = (image.shape[-2] // factor, image.shape[-1] // factor)
    kspace = torch.fft.fft2(image, norm="forward")
    nothing = kspace.new_zeros((*image.shape[:-2], *low))
    return torch.fft.ifft2(with_centre(nothing, kspace, low), norm="forward").real


def replace_centre(image: Tensor, low: Tensor) -> Tensor:
    """Central k-space replacement (section 2.1, M6): the low image's k-space in the centre, the image's own around it.

    It belongs after the network and not into the loss: d(KR(x)) is x0 for any x, so that nothing could be learnt.
    If `low` is d(truth), the error in the centre becomes zero and that outside stays as it is, so that by Parseval's
    theorem the squared error can't rise.

    Args:
        image: (..., H, W) real, a super-resolved image, of any origin.
        low: (..., h, w) real.

    Returns:
        (..., H, W).

    >>> high = torch.rand(8, 8)
    >>> torch.allclose(downsample(replace_centre(torch.rand(8, 8), downsample(high, 2)), 2), downsample(high, 2))
    True
    """
    kspace = torch.fft.fft2(image, norm="forward")
    source = torch.fft.fft2(low, norm="forward")
    return torch.fft.ifft2(with_centre(kspace, source, low.shape[-2:]), norm="forward").real


def sinc(low: Tensor, factor: int) -> Tensor:
    """Sinc interpolation (M8): zero-filled k-space, which is the replacement in an image of zeros; (..., r h, r w)."""
    size = (low.shape[-2] * factor, low.shape[-1] * factor)
    return replace_centre(low.new_zeros((*low.shape[:-2], *size)), low)


def bicubic(low: Tensor, factor: int) -> Tensor:
    """Bicubic interpolation (M8) on the same grid: sample n of `low` is sample r n of the result; edges wrap around, as
    with the FFT.

    torch's own `interpolate` puts the outer corners of the two grids onto each other, which is a shift by
    (r - 1) / 2 samples here.
    """

    def matrix(length: int) -> Tensor:
        position = torch.arange(length * factor, dtype=torch.float64) / factor
        first = position.floor()
        weights = torch.zeros(length * factor, length, dtype=torch.float64)
        for offset in (-1, 0, 1, 2):
            t = (position - first - offset).abs()
            a = -0.5  # Keys' own value, with which quadratics are met exactly
            near = ((a + 2) * t - (a + 3)) * t * t + 1
            far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
            index = (first + offset).long() % length
            weights.scatter_add_(1, index[:, None], torch.where(t <= 1, near, far)[:, None])
        return weights.to(low)

    return matrix(low.shape[-2]) @ low @ matrix(low.shape[-1]).T


INTERPOLATIONS = {"bicubic": bicubic, "sinc": sinc}
