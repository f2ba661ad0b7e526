"""`shared.similarity` against scikit-image, a reference in long floats and its own documentation."""

import doctest
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared import similarity
from tests.shared.metric_cases import IMAGE, INF, NAN, close, examples, image_pairs, one


@examples(100)
@given(image_pairs(smallest=11), st.booleans())
def test_gaussian_ssim_agrees_with_scikit_image(images, sample):
    from skimage.metrics import structural_similarity

    x, y, scale = images
    expected = structural_similarity(x, y, data_range=scale, gaussian_weights=True, use_sample_covariance=sample)
    ours = similarity.ssim(one(x), one(y), data_range=scale, sample_covariance=sample)
    close(ours, [expected])


@examples(100)
@given(image_pairs(smallest=9), st.booleans(), st.sampled_from((3, 7, 9)))
def test_uniform_ssim_agrees_with_scikit_image(images, sample, win_size):
    from skimage.metrics import structural_similarity

    x, y, scale = images
    options = {"data_range": scale, "win_size": win_size}
    expected = structural_similarity(x, y, use_sample_covariance=sample, **options)
    close(similarity.ssim(one(x), one(y), window="uniform", sample_covariance=sample, **options), [expected])


def test_ssim_defaults_are_the_usual_ones():
    from skimage.metrics import structural_similarity

    x, y = np.random.default_rng(0).random((2, 20, 21))
    paper = structural_similarity(x, y, data_range=1.0, gaussian_weights=True, use_sample_covariance=False)
    close(similarity.ssim(one(x), one(y), data_range=1.0), [paper])
    close(
        similarity.ssim(one(x), one(y), data_range=1.0, window="uniform"),
        [structural_similarity(x, y, data_range=1.0)],
    )
    other = structural_similarity(
        x, y, data_range=1.0, gaussian_weights=True, sigma=0.8, K1=0.02, K2=0.05, use_sample_covariance=False
    )
    close(similarity.ssim(one(x), one(y), data_range=1.0, sigma=0.8, k1=0.02, k2=0.05), [other])


def test_float32_ssim_is_that_of_float64_in_scikit_image():
    from skimage.metrics import structural_similarity

    x = np.random.default_rng(0).random((24, 25, 26)).astype(np.float32) / 10 + 100
    y = x + np.random.default_rng(1).normal(0, 0.05, x.shape).astype(np.float32)
    reference = structural_similarity(x.astype(float), y.astype(float), data_range=1.0)
    close(similarity.ssim(one(x), one(y), data_range=1.0, window="uniform"), [reference], rtol=1e-6)


def ssim_by_definition(x, y, data_range, size=7):
    """SSIM with a uniform window, window by window and in long floats, each variance about its own mean."""
    windows = [np.lib.stride_tricks.sliding_window_view(a.astype(np.longdouble), (size, size)) for a in (x, y)]
    a, b = (w.reshape(*w.shape[:2], -1) for w in windows)
    ux, uy = (w.mean(-1) for w in (a, b))
    a, b = a - ux[..., None], b - uy[..., None]
    normal = size**2 / (size**2 - 1)
    vx, vy, vxy = (normal * (u * v).mean(-1) for u, v in ((a, a), (b, b), (a, b)))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return float(((2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))).mean())


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6, 1e8])
@pytest.mark.parametrize("apart", [0.0, 3.0, 1e4])
def test_ssim_is_exact_far_from_zero(offset, apart):
    """Raw moments lose the variance in the square of the mean: at 1e8 nothing is left of it."""
    rng = np.random.default_rng(0)
    y = rng.random((24, 25)) + offset
    x = y + rng.normal(0, 0.1, y.shape) + apart
    ours = similarity.ssim(one(x), one(y), data_range=1.0, window="uniform")
    close(ours, [ssim_by_definition(x, y, 1.0)], rtol=1e-9)


def test_ssim_of_ct_with_an_offset_agrees_with_scikit_image():
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    y = (rng.random((12, 24, 25)) * 2000 + 1e4).astype(np.uint16)
    x = (y + rng.normal(0, 100, y.shape)).astype(np.uint16)
    reference = structural_similarity(x.astype(float), y.astype(float), data_range=2000)
    close(similarity.ssim(one(x), one(y), data_range=2000, window="uniform"), [reference], rtol=1e-9)


@pytest.mark.parametrize("shape", [(3, 13, 17), (5, 12, 16, 15)])
@pytest.mark.parametrize("chunk", [1, 700, 5000, 1 << 20])
def test_ssim_does_not_depend_on_the_chunks(shape, chunk):
    torch.manual_seed(0)
    x, y = torch.rand(2, *shape, dtype=torch.float64)
    expected = torch.cat([similarity.ssim(a[None], b[None], data_range=1.0) for a, b in zip(x, y)])
    with mock.patch.object(similarity, "_SSIM_CHUNK", chunk):
        close(similarity.ssim(x, y, data_range=1.0), expected, rtol=1e-12)


def test_long_ssim_chunks_of_rows():
    torch.manual_seed(0)
    x, y = torch.rand(2, 1, 60, 16, 16, dtype=torch.float64)
    expected = similarity.ssim(x, y, data_range=1.0)
    for chunk in (1, 2300, 4000):
        with mock.patch.object(similarity, "_SSIM_CHUNK", chunk):
            close(similarity.ssim(x, y, data_range=1.0), expected, rtol=1e-12)


def test_ssim_leaves_the_threads_of_torch_alone():
    x, y = torch.rand(2, 1, 40, 40, 40)
    threads = torch.get_num_threads()
    values = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with mock.patch.object(similarity, "_SSIM_CHUNK", 1):
                values.append(similarity.ssim(x, y, data_range=1.0).item())
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_ssim_is_differentiable(window):
    torch.manual_seed(0)
    x, y = (torch.rand(2, 12, 13, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with mock.patch.object(similarity, "_SSIM_CHUNK", 14):
        assert torch.autograd.gradcheck(
            lambda a, b: similarity.ssim(a, b, data_range=1.0, window=window), (x, y), fast_mode=True
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: similarity.ssim(IMAGE, IMAGE, data_range=None), "data_range is required"),
        (lambda: similarity.ssim(IMAGE, IMAGE, data_range=INF), "data_range must be positive"),
        (lambda: similarity.ssim(IMAGE, IMAGE * NAN, data_range=1), "NaN"),
        (lambda: similarity.ssim(IMAGE[:, :5], IMAGE[:, :5], data_range=1), "at least 11 voxels"),
        (lambda: similarity.ssim(IMAGE[:, None], IMAGE[:, None], data_range=1), "channels"),
        (lambda: similarity.ssim(IMAGE[0], IMAGE[0], data_range=1), "two or three"),
        (lambda: similarity.ssim(IMAGE, IMAGE, data_range=1, window="box"), "window must be"),
        (lambda: similarity.ssim(IMAGE, IMAGE, data_range=1, window="uniform", win_size=4), "odd"),
        (lambda: similarity.ssim(IMAGE, IMAGE, data_range=1, sigma=0.0), "sigma"),
        (lambda: similarity.ssim(IMAGE, IMAGE, data_range=1, k1=-0.1), "k1 and k2"),
    ],
)
def test_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_examples_of_the_documentation():
    result = doctest.testmod(similarity, verbose=False)
    assert result.attempted >= 1 and result.failed == 0
