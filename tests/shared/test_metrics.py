"""`shared.metrics` against independent libraries, a brute-force reference and its own documentation."""

import doctest
import math
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import metrics

CLOSE = {"rtol": 1e-6, "atol": 1e-9, "equal_nan": True}
NAN, INF = math.nan, math.inf
OVERLAP = (metrics.dice, metrics.iou, metrics.sensitivity, metrics.precision)
SURFACE = (metrics.hd95, metrics.hausdorff_distance, metrics.assd, metrics.asd)


def examples(count):
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def close(actual, expected, **tolerance):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), **{**CLOSE, **tolerance})


def one(mask):
    """A NumPy array as a batch of one."""
    return torch.from_numpy(np.ascontiguousarray(mask))[None]


# ------------------------------------------------------------------------------------------------------------
# Cases
# ------------------------------------------------------------------------------------------------------------

KINDS = ("random", "dense", "sparse", "empty", "full", "voxel", "plane", "box", "corner")


def make_mask(kind, shape, rng):
    mask = np.zeros(shape, dtype=bool)
    if kind in ("random", "dense", "sparse"):
        mask = rng.random(shape) < {"random": 0.5, "dense": 0.9, "sparse": 0.08}[kind]
    elif kind == "full":
        mask[...] = True
    elif kind == "voxel":
        mask[tuple(rng.integers(n) for n in shape)] = True
    elif kind == "plane":
        axis = rng.integers(len(shape))
        np.moveaxis(mask, axis, 0)[rng.integers(shape[axis])] = True
    elif kind == "box":
        low = [rng.integers(n) for n in shape]
        mask[tuple(slice(a, rng.integers(a, n) + 1) for a, n in zip(low, shape))] = True
    elif kind == "corner":
        mask[tuple(slice(0, (n + 1) // 2) for n in shape)] = True
    return mask


@st.composite
def mask_pairs(draw, kinds=KINDS, nonempty=False):
    """Prediction, truth and spacing, in two or three dimensions, anisotropic, degenerate in every way."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    p, t = (make_mask(draw(st.sampled_from(kinds)), shape, rng) for _ in range(2))
    relation = draw(st.sampled_from(("any", "any", "any", "same", "disjoint", "inside")))
    if relation == "same":
        p = t.copy()
    elif relation == "disjoint":
        p &= ~t
    elif relation == "inside":
        p &= t
    if nonempty:
        for mask in (p, t):
            if not mask.any():
                mask[tuple(rng.integers(n) for n in shape)] = True
    spacing = draw(st.lists(st.sampled_from((0.3, 0.7, 1.0, 1.25, 3.0, 8.0)), min_size=len(shape), max_size=len(shape)))
    return p, t, tuple(spacing)


@st.composite
def label_pairs(draw):
    """Two batches of label maps (B, *spatial), labels that may be absent, and a spacing."""
    shape = tuple(draw(st.lists(st.integers(1, 8), min_size=2, max_size=3)))
    batch = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = np.array(draw(st.sampled_from(((0, 1), (0, 1, 2, 3), (0, 2, 5, 9, 11, 200), (0, -1, 4, 70000)))))
    weights = rng.dirichlet(np.ones(len(values)))
    p, t = (rng.choice(values, (batch, *shape), p=weights) for _ in range(2))
    pool = sorted({1, 2, 3, 4, 5, 9, 13, 200, *values.tolist()})
    labels = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=8, unique=True))
    dtype = draw(st.sampled_from((torch.int64, torch.int32)))
    spacing = tuple(draw(st.sampled_from((0.5, 1.0, 2.5))) for _ in shape)
    return torch.from_numpy(p).to(dtype), torch.from_numpy(t).to(dtype), labels, spacing


def surface(mask):
    """The definition, by SciPy."""
    from scipy.ndimage import binary_erosion

    return mask ^ binary_erosion(mask)


def brute_force(p, t, spacing):
    """Both directed distance sets from all pairs of surface voxels."""
    from scipy.spatial.distance import cdist

    a, b = (np.argwhere(surface(mask)) * np.asarray(spacing) for mask in (p, t))
    pairs = cdist(a, b)
    return pairs.min(axis=1), pairs.min(axis=0)


# ------------------------------------------------------------------------------------------------------------
# Surface distance
# ------------------------------------------------------------------------------------------------------------


@examples(400)
@given(mask_pairs(nonempty=True), st.sampled_from((1, 5, 30, 1024)))
def test_surface_distances_are_those_of_all_pairs(pair, columns):
    p, t, spacing = pair
    with mock.patch.object(metrics, "_SEARCHED_COLUMNS", columns):
        found = metrics.surface_distances(one(p), one(t), spacing)[0][0]
    for actual, expected in zip(found, brute_force(p, t, spacing)):
        close(np.sort(actual.numpy()), np.sort(expected))


@examples(200)
@given(mask_pairs(nonempty=True), st.sampled_from((0.0, 37.5, 50.0, 95.0, 100.0)))
def test_surface_metrics_follow_their_definitions(pair, percentile):
    p, t, spacing = pair
    a, b = brute_force(p, t, spacing)
    P, T = one(p), one(t)
    for convention, expected in (
        ("max_of_directed", max(np.percentile(a, percentile), np.percentile(b, percentile))),
        ("pooled", np.percentile(np.r_[a, b], percentile)),
    ):
        hd = metrics.hausdorff_distance(P, T, spacing, percentile=percentile, convention=convention)
        close(hd, [[expected]])
    both = np.r_[a, b]
    close(metrics.assd(P, T, spacing), [[both.mean()]])
    close(metrics.asd(P, T, spacing), [[a.mean()]])
    close(metrics.asd(T, P, spacing), [[b.mean()]])
    for tolerance in (0.0, 1.0, 2.1):
        expected = np.mean(both <= tolerance + 1e-9)
        close(metrics.nsd(P, T, spacing, tolerance=tolerance), [[expected]])


@examples(60)
@given(mask_pairs(nonempty=True))
def test_surface_metrics_agree_with_monai(pair):
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    p, t, spacing = pair
    P, T = one(p), one(t)
    options = {"include_background": True, "spacing": list(spacing)}
    pair = P[None].float(), T[None].float()
    ours = metrics.surface_metrics(P, T, spacing, nsd_tolerance=1.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        largest = metrics.hausdorff_distance(P, T, spacing)
        close(largest, compute_hausdorff_distance(*pair, **options))
        # MONAI interpolates between two distances in float32, with an error relative to the larger one.
        hd95 = compute_hausdorff_distance(*pair, percentile=95, **options)
        close(ours["hd95"], hd95, atol=1e-6 * largest.item())
        close(ours["assd"], compute_average_surface_distance(*pair, symmetric=True, **options))
        close(metrics.asd(P, T, spacing), compute_average_surface_distance(*pair, **options))
        close(ours["nsd"], compute_surface_dice(*pair, class_thresholds=[1.4], **options))


@examples(150)
@given(mask_pairs(nonempty=True))
def test_surface_metrics_agree_with_medpy(pair):
    from medpy.metric import binary as medpy

    p, t, spacing = pair
    P, T = one(p), one(t)
    close(metrics.hd95(P, T, spacing, convention="pooled"), [[medpy.hd95(p, t, spacing)]])
    close(metrics.hausdorff_distance(P, T, spacing), [[medpy.hd(p, t, spacing)]])
    close(metrics.assd(P, T, spacing), [[medpy.assd(p, t, spacing)]])
    close(metrics.asd(P, T, spacing), [[medpy.asd(p, t, spacing)]])


@examples(80)
@given(mask_pairs(nonempty=True))
def test_hausdorff_agrees_with_simpleitk(pair):
    """SimpleITK takes all voxels of a mask for points, so it's given the surfaces."""
    import SimpleITK as sitk

    p, t, spacing = pair
    images = [sitk.GetImageFromArray(surface(mask).astype(np.uint8)) for mask in (p, t)]
    for image in images:
        image.SetSpacing(spacing[::-1])
    reference = sitk.HausdorffDistanceImageFilter()
    reference.Execute(*images)
    close(metrics.hausdorff_distance(one(p), one(t), spacing), [[reference.GetHausdorffDistance()]])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.9), (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("far", [False, True])
def test_large_masks_agree_with_medpy(spacing, far):
    """Large enough for the search to stop early, and far enough apart for it to give up."""
    from medpy.metric import binary as medpy
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(48)] * 3, indexing="ij"))
    masks = []
    for centre in ((20, 22, 20), (42, 40, 41) if far else (23, 22, 24)):
        distance = np.sqrt(((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0))
        masks.append(distance + 25 * gaussian_filter(rng.standard_normal((48,) * 3), 2) < (5 if far else 14))
    p, t = masks
    ours = metrics.surface_metrics(one(p), one(t), spacing, convention="pooled")
    close(ours["hd95"], [[medpy.hd95(p, t, spacing)]])
    close(ours["assd"], [[medpy.assd(p, t, spacing)]])


def test_surface_metrics_by_hand():
    """Two voxels 2 rows and 3 columns apart, with the spacing in the order of the axes."""
    p = torch.zeros(1, 9, 9, dtype=torch.bool)
    t = p.clone()
    p[0, 4, 4] = t[0, 6, 7] = True
    expected = math.hypot(2 * 5.0, 3 * 0.5)
    for metric in SURFACE:
        assert metric(p, t, (5.0, 0.5)).item() == pytest.approx(expected)
    assert metrics.nsd(p, t, (5.0, 0.5), tolerance=expected).item() == 1
    assert metrics.nsd(p, t, (5.0, 0.5), tolerance=0.999 * expected).item() == 0


def test_the_border_of_the_image_is_a_surface():
    full = torch.ones(1, 5, 5, dtype=torch.bool)
    ring = full.clone()
    ring[:, 1:4, 1:4] = False
    found = metrics.surface_distances(full, ring, (1.0, 1.0))[0][0]
    assert len(found.prediction_to_truth) == len(found.truth_to_prediction) == 16
    assert metrics.hausdorff_distance(full, ring, (1.0, 1.0)).item() == 0


def test_a_rounded_distance_is_within_the_tolerance():
    p = torch.zeros(1, 9, 9, dtype=torch.bool)
    t = p.clone()
    p[0, 0, 0] = t[0, 3, 0] = True
    assert metrics.nsd(p, t, (0.1, 1.0), tolerance=0.3).item() == 1  # 3 * 0.1 > 0.3


@examples(100)
@given(label_pairs())
def test_surface_metrics_of_labels_are_those_of_their_masks(case):
    p, t, labels, spacing = case
    ours = metrics.surface_metrics(p, t, spacing, labels, nsd_tolerance=1.0)
    directed = metrics.asd(p, t, spacing, labels)
    assert ours["hd95"].shape == (len(p), len(labels))
    for b in range(len(p)):
        for l, label in enumerate(labels):
            masks = p[b : b + 1] == label, t[b : b + 1] == label
            single = metrics.surface_metrics(*masks, spacing, nsd_tolerance=1.0)
            for name, value in single.items():
                close(ours[name][b, l], value[0, 0], rtol=1e-12)
            close(directed[b, l], metrics.asd(*masks, spacing)[0, 0], rtol=1e-12)


@examples(80)
@given(mask_pairs(), st.integers(0, 5))
def test_symmetry_permutation_flip_scale_and_padding(pair, seed):
    p, t, spacing = pair
    P, T = one(p), one(t)
    rng = np.random.default_rng(seed)
    expected = metrics.surface_metrics(P, T, spacing, nsd_tolerance=1.0)

    def same(values, scale=1.0):
        for name, value in values.items():
            close(value, expected[name] * (1.0 if name == "nsd" else scale))

    same(metrics.surface_metrics(T, P, spacing, nsd_tolerance=1.0))
    order = rng.permutation(p.ndim)
    turned = [one(x.transpose(order)) for x in (p, t)]
    same(metrics.surface_metrics(*turned, [spacing[k] for k in order], nsd_tolerance=1.0))
    same(metrics.surface_metrics(P.flip(1), T.flip(1), spacing, nsd_tolerance=1.0))
    same(metrics.surface_metrics(P, T, [4 * s for s in spacing], nsd_tolerance=4.0), scale=4.0)
    same(metrics.surface_metrics(*(one(np.pad(x, 2)) for x in (p, t)), spacing, nsd_tolerance=1.0))


def test_spacing_per_case():
    torch.manual_seed(0)
    p, t = torch.rand(2, 2, 6, 7) > 0.7
    spacings = [(1.0, 2.0), (3.0, 0.5)]
    ours = metrics.hd95(p, t, spacings)
    for b, spacing in enumerate(spacings):
        close(ours[b], metrics.hd95(p[b : b + 1], t[b : b + 1], spacing)[0])


def test_tolerance_per_label():
    torch.manual_seed(0)
    p, t = torch.randint(0, 3, (2, 1, 8, 8))
    ours = metrics.nsd(p, t, (1.0, 1.0), [1, 2], tolerance=[0.0, 1.0])
    close(ours[:, 0], metrics.nsd(p, t, (1.0, 1.0), [1], tolerance=0.0)[:, 0])
    close(ours[:, 1], metrics.nsd(p, t, (1.0, 1.0), [2], tolerance=1.0)[:, 0])


# ------------------------------------------------------------------------------------------------------------
# Overlap
# ------------------------------------------------------------------------------------------------------------


@examples(200)
@given(label_pairs())
def test_overlap_follows_its_definition(case):
    p, t, labels, _ = case
    ours = [metric(p, t, labels) for metric in OVERLAP]
    for b in range(len(p)):
        for l, label in enumerate(labels):
            a, c = (x[b].numpy() == label for x in (p, t))
            both = (a & c).sum()
            fractions = (
                (2 * both, a.sum() + c.sum()),
                (both, (a | c).sum()),
                (both, c.sum()),
                (both, a.sum()),
            )
            for value, (top, bottom) in zip(ours, fractions):
                close(value[b, l], top / bottom if bottom else NAN)


@examples(80)
@given(label_pairs())
def test_overlap_agrees_with_simpleitk(case):
    import SimpleITK as sitk

    p, t, labels, _ = case
    reference = sitk.LabelOverlapMeasuresImageFilter()
    for b in range(len(p)):
        images = [sitk.GetImageFromArray(x[b].numpy().astype(np.int32)) for x in (p, t)]
        reference.Execute(*images)
        for label in labels:
            a, c = p[b : b + 1], t[b : b + 1]
            if label == 0 or not (a == label).any() or not (c == label).any():
                continue
            close(metrics.dice(a, c, [label]), [[reference.GetDiceCoefficient(label)]])
            close(metrics.iou(a, c, [label]), [[reference.GetJaccardCoefficient(label)]])
            # Its source is our prediction and its errors are fractions of the target and the source.
            close(metrics.sensitivity(a, c, [label]), [[1 - reference.GetFalseNegativeError(label)]])


@examples(80)
@given(mask_pairs(nonempty=True))
def test_overlap_agrees_with_medpy_and_monai(pair):
    from medpy.metric import binary as medpy
    from monai.metrics import compute_dice, compute_iou

    p, t, _ = pair
    P, T = one(p), one(t)
    close(metrics.dice(P, T), [[medpy.dc(p, t)]])
    close(metrics.iou(P, T), [[medpy.jc(p, t)]])
    close(metrics.sensitivity(P, T), [[medpy.recall(p, t)]])
    close(metrics.precision(P, T), [[medpy.precision(p, t)]])
    close(metrics.dice(P, T), compute_dice(P[None].float(), T[None].float()))
    close(metrics.iou(P, T), compute_iou(P[None].float(), T[None].float()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_overlap_of_every_integer_type(dtype):
    torch.manual_seed(0)
    p, t = torch.randint(0, 4, (2, 2, 5, 6, 7))
    labels = [3, 1, 0, 9, 1000, -5]
    for metric in OVERLAP:
        close(metric(p.to(dtype), t.to(dtype), labels), metric(p, t, labels))
    close(metrics.hd95(p.to(dtype), t.to(dtype), (1, 1, 1), labels), metrics.hd95(p, t, (1, 1, 1), labels))


def test_bool_masks_have_the_labels_of_their_integers():
    torch.manual_seed(0)
    p, t = torch.rand(2, 3, 6, 7) > 0.6
    labels = [0, 1, 2]
    for metric in OVERLAP:
        close(metric(p, t, labels), metric(p.long(), t.long(), labels))
        close(metric(p, t), metric(p, t, [1]))
        close(metric(p, t), metric(p.long(), t.long(), [1]))
    close(metrics.hd95(p, t, (1, 2), labels), metrics.hd95(p.long(), t.long(), (1, 2), labels))


def test_the_other_order_of_the_arguments():
    torch.manual_seed(0)
    p, t = torch.rand(2, 3, 6, 7) > 0.6
    close(metrics.precision(p, t), metrics.sensitivity(t, p))
    close(metrics.dice(p, t), metrics.dice(t, p))
    close(metrics.iou(p, t), metrics.iou(t, p))


# ------------------------------------------------------------------------------------------------------------
# Empty masks, as documented
# ------------------------------------------------------------------------------------------------------------

SOME = torch.zeros(1, 4, 4, dtype=torch.bool)
SOME[0, 1, 2] = True
NONE = torch.zeros_like(SOME)


@pytest.mark.parametrize(
    ("metric", "both", "no_prediction", "no_truth"),
    [
        (metrics.dice, NAN, 0, 0),
        (metrics.iou, NAN, 0, 0),
        (metrics.sensitivity, NAN, 0, NAN),
        (metrics.precision, NAN, NAN, 0),
    ],
)
def test_overlap_of_empty_masks(metric, both, no_prediction, no_truth):
    for (p, t), expected in {(NONE, NONE): both, (NONE, SOME): no_prediction, (SOME, NONE): no_truth}.items():
        close(metric(p, t), [[expected]])
        close(metric(p, t, undefined=1.0), [[1.0 if math.isnan(expected) else expected]])


def test_surface_metrics_of_empty_masks():
    spacing = (1.0, 1.0)
    for metric in SURFACE:
        close(metric(NONE, NONE, spacing), [[NAN]])
        close(metric(NONE, NONE, spacing, both_empty=0.0), [[0.0]])
        for pair in ((NONE, SOME), (SOME, NONE)):
            close(metric(*pair, spacing), [[INF]])
            close(metric(*pair, spacing, one_empty=373.1), [[373.1]])
    close(metrics.nsd(NONE, NONE, spacing, tolerance=1.0), [[NAN]])
    close(metrics.nsd(NONE, NONE, spacing, tolerance=1.0, both_empty=1.0), [[1.0]])
    close(metrics.nsd(NONE, SOME, spacing, tolerance=1.0), [[0.0]])
    close(metrics.nsd(SOME, NONE, spacing, tolerance=1.0), [[0.0]])
    every = metrics.surface_metrics(NONE, SOME, spacing, nsd_tolerance=1.0, one_empty=5.0)
    assert {name: value.item() for name, value in every.items()} == {"hd95": 5.0, "assd": 5.0, "nsd": 0.0}
    assert "nsd" not in metrics.surface_metrics(SOME, SOME, spacing)


def test_distances_of_empty_masks():
    found = metrics.surface_distances(SOME, NONE, (1.0, 1.0))[0][0]
    assert found.prediction_to_truth.tolist() == [INF] and found.truth_to_prediction.tolist() == []
    found = metrics.surface_distances(NONE, NONE, (1.0, 1.0))[0][0]
    assert [len(x) for x in found] == [0, 0]


# ------------------------------------------------------------------------------------------------------------
# Image quality
# ------------------------------------------------------------------------------------------------------------


@st.composite
def image_pairs(draw, smallest=1):
    shape = tuple(draw(st.lists(st.integers(smallest, smallest + 8), min_size=2, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from((1e-3, 1.0, 3000.0)))
    offset = draw(st.sampled_from((0.0, 0.5, -1.0)))
    y = scale * (rng.random(shape) + offset)
    x = y + scale * draw(st.sampled_from((0.0, 0.01, 0.3, 2.0))) * rng.standard_normal(shape)
    return x, y, scale


@examples(150)
@given(image_pairs())
def test_errors_agree_with_their_definitions_and_scikit_image(images):
    from skimage.metrics import peak_signal_noise_ratio

    x, y, scale = images
    X, Y = one(x), one(y)
    close(metrics.mae(X, Y), [np.abs(x - y).mean()], atol=0)
    close(metrics.nmae(X, Y), [np.abs(x - y).sum() / np.abs(y).sum()], atol=0)
    close(metrics.nmse(X, Y), [np.linalg.norm(x - y) ** 2 / np.linalg.norm(y) ** 2], atol=0)
    with np.errstate(divide="ignore"):
        close(metrics.psnr(X, Y, data_range=scale), [peak_signal_noise_ratio(y, x, data_range=scale)])


@examples(100)
@given(image_pairs(smallest=11), st.booleans())
def test_gaussian_ssim_agrees_with_scikit_image(images, sample):
    from skimage.metrics import structural_similarity

    x, y, scale = images
    expected = structural_similarity(x, y, data_range=scale, gaussian_weights=True, use_sample_covariance=sample)
    ours = metrics.ssim(one(x), one(y), data_range=scale, sample_covariance=sample)
    close(ours, [expected])


@examples(100)
@given(image_pairs(smallest=9), st.booleans(), st.sampled_from((3, 7, 9)))
def test_uniform_ssim_agrees_with_scikit_image(images, sample, win_size):
    from skimage.metrics import structural_similarity

    x, y, scale = images
    options = {"data_range": scale, "win_size": win_size}
    expected = structural_similarity(x, y, use_sample_covariance=sample, **options)
    close(metrics.ssim(one(x), one(y), window="uniform", sample_covariance=sample, **options), [expected])


def test_ssim_defaults_are_the_usual_ones():
    from skimage.metrics import structural_similarity

    x, y = np.random.default_rng(0).random((2, 20, 21))
    paper = structural_similarity(x, y, data_range=1.0, gaussian_weights=True, use_sample_covariance=False)
    close(metrics.ssim(one(x), one(y), data_range=1.0), [paper])
    close(
        metrics.ssim(one(x), one(y), data_range=1.0, window="uniform"),
        [structural_similarity(x, y, data_range=1.0)],
    )
    other = structural_similarity(
        x, y, data_range=1.0, gaussian_weights=True, sigma=0.8, K1=0.02, K2=0.05, use_sample_covariance=False
    )
    close(metrics.ssim(one(x), one(y), data_range=1.0, sigma=0.8, k1=0.02, k2=0.05), [other])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.uint8, torch.int16])
def test_image_metrics_are_exact_for_every_type(dtype):
    torch.manual_seed(0)
    x, y = (200 * torch.rand(2, 2, 14, 15)).to(dtype)
    for metric in (metrics.mae, metrics.nmae, metrics.nmse):
        close(metric(x, y), metric(x.double(), y.double()), rtol=1e-12)
    for metric in (metrics.psnr, metrics.ssim):
        close(metric(x, y, data_range=255), metric(x.double(), y.double(), data_range=255), rtol=1e-10)


def test_float32_ssim_is_that_of_float64_in_scikit_image():
    from skimage.metrics import structural_similarity

    x = np.random.default_rng(0).random((24, 25, 26)).astype(np.float32) / 10 + 100
    y = x + np.random.default_rng(1).normal(0, 0.05, x.shape).astype(np.float32)
    reference = structural_similarity(x.astype(float), y.astype(float), data_range=1.0)
    close(metrics.ssim(one(x), one(y), data_range=1.0, window="uniform"), [reference], rtol=1e-6)


@pytest.mark.parametrize("shape", [(3, 13, 17), (5, 12, 16, 15)])
@pytest.mark.parametrize("chunk", [1, 700, 5000, 1 << 20])
def test_ssim_does_not_depend_on_the_chunks(shape, chunk):
    torch.manual_seed(0)
    x, y = torch.rand(2, *shape, dtype=torch.float64)
    expected = torch.cat([metrics.ssim(a[None], b[None], data_range=1.0) for a, b in zip(x, y)])
    with mock.patch.object(metrics, "_SSIM_CHUNK", chunk):
        close(metrics.ssim(x, y, data_range=1.0), expected, rtol=1e-12)


def test_long_ssim_chunks_of_rows():
    torch.manual_seed(0)
    x, y = torch.rand(2, 1, 60, 16, 16, dtype=torch.float64)
    expected = metrics.ssim(x, y, data_range=1.0)
    for chunk in (1, 2300, 4000):
        with mock.patch.object(metrics, "_SSIM_CHUNK", chunk):
            close(metrics.ssim(x, y, data_range=1.0), expected, rtol=1e-12)


def test_ssim_leaves_the_threads_of_torch_alone():
    x, y = torch.rand(2, 1, 40, 40, 40)
    threads = torch.get_num_threads()
    values = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with mock.patch.object(metrics, "_SSIM_CHUNK", 1):
                values.append(metrics.ssim(x, y, data_range=1.0).item())
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)


def test_image_metrics_of_a_batch_are_those_of_its_cases():
    torch.manual_seed(0)
    x, y = torch.rand(2, 3, 13, 14)
    spans = torch.tensor([1.0, 2.0, 5.0])
    for metric in (metrics.mae, metrics.nmae, metrics.nmse):
        close(metric(x, y), [metric(a[None], b[None]).item() for a, b in zip(x, y)], rtol=1e-12)
    for metric in (metrics.psnr, metrics.ssim):
        each = [metric(a[None], b[None], data_range=float(r)).item() for a, b, r in zip(x, y, spans)]
        close(metric(x, y, data_range=spans), each, rtol=1e-12)


def test_identical_images():
    x = torch.rand(2, 12, 12) + 0.1
    assert metrics.psnr(x, x, data_range=1.0).tolist() == [INF, INF]
    close(metrics.ssim(x, x, data_range=1.0), [1.0, 1.0], rtol=1e-12)
    for metric in (metrics.mae, metrics.nmae, metrics.nmse):
        assert metric(x, x).tolist() == [0.0, 0.0]


def test_a_truth_of_zeros():
    zero, x = torch.zeros(1, 4, 4), torch.rand(1, 4, 4)
    for metric in (metrics.nmse, metrics.nmae):
        assert metric(x, zero).item() == INF
        assert math.isnan(metric(zero, zero).item())


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
def test_ssim_is_differentiable(window):
    torch.manual_seed(0)
    x, y = (torch.rand(2, 12, 13, dtype=torch.float64, requires_grad=True) for _ in range(2))
    with mock.patch.object(metrics, "_SSIM_CHUNK", 14):
        assert torch.autograd.gradcheck(
            lambda a, b: metrics.ssim(a, b, data_range=1.0, window=window), (x, y), fast_mode=True
        )


def test_errors_are_differentiable_in_float32():
    x = torch.rand(2, 12, 13, requires_grad=True)
    y = torch.rand(2, 12, 13)
    for loss in (
        metrics.mae(x, y),
        metrics.nmse(x, y),
        metrics.psnr(x, y, data_range=1),
        metrics.ssim(x, y, data_range=1),
    ):
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert gradient.dtype == torch.float32 and gradient.isfinite().all() and gradient.abs().sum() > 0


# ------------------------------------------------------------------------------------------------------------
# Invalid arguments
# ------------------------------------------------------------------------------------------------------------

INTEGERS = torch.ones(1, 12, 12, dtype=torch.int64)
MASK = INTEGERS.bool()
IMAGE = torch.rand(1, 12, 12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.dice(MASK, MASK[:, 1:]), "same shape"),
        (lambda: metrics.dice(MASK.numpy(), MASK), "torch tensor"),
        (lambda: metrics.dice(IMAGE, MASK), "bool mask"),
        (lambda: metrics.dice(INTEGERS, MASK, [1]), "both integer"),
        (lambda: metrics.dice(INTEGERS, INTEGERS), "labels is required"),
        (lambda: metrics.dice(INTEGERS, INTEGERS, []), "labels must be"),
        (lambda: metrics.dice(INTEGERS, INTEGERS, [1, 1]), "labels must be"),
        (lambda: metrics.dice(MASK[0, 0], MASK[0, 0]), "spatial"),
        (lambda: metrics.dice(MASK[:, :0], MASK[:, :0]), "voxels"),
        (lambda: metrics.hd95(MASK, MASK[:, 1:], (1, 1)), "same shape"),
        (lambda: metrics.hd95(MASK, MASK, (1, 1, 1)), "spacing must be 2 numbers"),
        (lambda: metrics.hd95(MASK, MASK, 1.0), "spacing must be 2 numbers"),
        (lambda: metrics.hd95(MASK, MASK, "ab"), "spacing must be 2 numbers"),
        (lambda: metrics.hd95(MASK, MASK, (1, 0)), "positive"),
        (lambda: metrics.hd95(MASK, MASK, (1, NAN)), "positive"),
        (lambda: metrics.hd95(MASK[..., None, None], MASK[..., None, None], (1,) * 4), "two or three"),
        (lambda: metrics.hd95(MASK, MASK, (1, 1), convention="median"), "convention"),
        (lambda: metrics.hausdorff_distance(MASK, MASK, (1, 1), percentile=101), "percentile"),
        (lambda: metrics.nsd(MASK, MASK, (1, 1), tolerance=-1.0), "tolerance"),
        (lambda: metrics.nsd(MASK, MASK, (1, 1), tolerance=[1.0, 1.0]), "tolerance"),
        (lambda: metrics.mae(IMAGE, IMAGE[:, 1:]), "same shape"),
        (lambda: metrics.mae(IMAGE * NAN, IMAGE), "prediction has NaN"),
        (lambda: metrics.nmse(IMAGE, IMAGE / 0), "truth has NaN or infinite"),
        (lambda: metrics.mae(IMAGE.to(torch.complex64), IMAGE), "magnitude"),
        (lambda: metrics.mae(IMAGE.numpy(), IMAGE), "torch tensor"),
        (lambda: metrics.mae(IMAGE[0, 0], IMAGE[0, 0]), "spatial"),
        (lambda: metrics.psnr(IMAGE, IMAGE, data_range=None), "data_range is required"),
        (lambda: metrics.psnr(IMAGE, IMAGE, data_range=0.0), "data_range must be positive"),
        (lambda: metrics.psnr(IMAGE, IMAGE, data_range=torch.ones(2)), "one per case"),
        (lambda: metrics.ssim(IMAGE, IMAGE, data_range=None), "data_range is required"),
        (lambda: metrics.ssim(IMAGE, IMAGE, data_range=INF), "data_range must be positive"),
        (lambda: metrics.ssim(IMAGE, IMAGE * NAN, data_range=1), "NaN"),
        (lambda: metrics.ssim(IMAGE[:, :5], IMAGE[:, :5], data_range=1), "at least 11 voxels"),
        (lambda: metrics.ssim(IMAGE[:, None], IMAGE[:, None], data_range=1), "channels"),
        (lambda: metrics.ssim(IMAGE[0], IMAGE[0], data_range=1), "two or three"),
        (lambda: metrics.ssim(IMAGE, IMAGE, data_range=1, window="box"), "window must be"),
        (lambda: metrics.ssim(IMAGE, IMAGE, data_range=1, window="uniform", win_size=4), "odd"),
        (lambda: metrics.ssim(IMAGE, IMAGE, data_range=1, sigma=0.0), "sigma"),
        (lambda: metrics.ssim(IMAGE, IMAGE, data_range=1, k1=-0.1), "k1 and k2"),
    ],
)
def test_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_data_range_has_no_default(metric):
    with pytest.raises(TypeError, match="data_range"):
        metric(IMAGE, IMAGE)


def test_arguments_are_left_as_they_were():
    torch.manual_seed(0)
    p, t = torch.randint(0, 9, (2, 1, 9, 9))
    x, y = torch.rand(2, 1, 12, 12)
    before = [v.clone() for v in (p, t, x, y)]
    metrics.dice(p, t, [1, 2])
    metrics.surface_metrics(p, t, (1, 1), [1, 2, 3, 4, 5, 6])
    metrics.ssim(x, y, data_range=1)
    assert all(torch.equal(a, b) for a, b in zip(before, (p, t, x, y)))


def test_the_examples_of_the_documentation():
    result = doctest.testmod(metrics, verbose=False)
    assert result.attempted >= 5 and result.failed == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_the_gpu_as_on_the_cpu():
    torch.manual_seed(0)
    p, t = torch.randint(0, 4, (2, 2, 12, 13, 14))
    x, y = torch.rand(2, 2, 12, 13, 14)
    labels = [1, 2, 3, 9, 100000]
    for metric in OVERLAP:
        for a, b, some in ((p, t, labels[:4]), (p, t, labels), (p > 1, t > 1, None)):
            found = metric(a.cuda(), b.cuda(), some)
            assert found.is_cuda
            close(found.cpu(), metric(a, b, some))
    for name, value in metrics.surface_metrics(p.cuda(), t.cuda(), (1, 2, 3), labels, nsd_tolerance=1).items():
        assert value.is_cuda
        close(value.cpu(), metrics.surface_metrics(p, t, (1, 2, 3), labels, nsd_tolerance=1)[name])
    for metric in (metrics.mae, metrics.nmae, metrics.nmse):
        close(metric(x.cuda(), y.cuda()).cpu(), metric(x, y))
    for metric in (metrics.psnr, metrics.ssim):
        found = metric(x.cuda(), y.cuda(), data_range=1)
        assert found.is_cuda
        close(found.cpu(), metric(x, y, data_range=1))
