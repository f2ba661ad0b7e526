"""`shared.surfaces` against independent libraries, a brute-force reference and its own documentation."""

import doctest
import math
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared import nearest_surface, surfaces
from tests.shared.metric_cases import INF, MASK, NAN, NONE, SOME, close, examples, label_pairs, mask_pairs, one

SURFACE = (surfaces.hd95, surfaces.hausdorff_distance, surfaces.assd, surfaces.asd)


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


@examples(400)
@given(mask_pairs(nonempty=True), st.sampled_from((1, 5, 30, 1024)))
def test_surface_distances_are_those_of_all_pairs(pair, columns):
    p, t, spacing = pair
    with mock.patch.object(nearest_surface, "SEARCHED_COLUMNS", columns):
        found = surfaces.surface_distances(one(p), one(t), spacing)[0][0]
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
        hd = surfaces.hausdorff_distance(P, T, spacing, percentile=percentile, convention=convention)
        close(hd, [[expected]])
    both = np.r_[a, b]
    close(surfaces.assd(P, T, spacing), [[both.mean()]])
    close(surfaces.asd(P, T, spacing), [[a.mean()]])
    close(surfaces.asd(T, P, spacing), [[b.mean()]])
    for tolerance in (0.0, 1.0, 2.1):
        expected = np.mean(both <= tolerance + 1e-9)
        close(surfaces.nsd(P, T, spacing, tolerance=tolerance), [[expected]])


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
    ours = surfaces.surface_metrics(P, T, spacing, nsd_tolerance=1.4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        largest = surfaces.hausdorff_distance(P, T, spacing)
        close(largest, compute_hausdorff_distance(*pair, **options))
        # MONAI interpolates between two distances in float32, with an error relative to the larger one.
        hd95 = compute_hausdorff_distance(*pair, percentile=95, **options)
        close(ours["hd95"], hd95, atol=1e-6 * largest.item())
        close(ours["assd"], compute_average_surface_distance(*pair, symmetric=True, **options))
        close(surfaces.asd(P, T, spacing), compute_average_surface_distance(*pair, **options))
        close(ours["nsd"], compute_surface_dice(*pair, class_thresholds=[1.4], **options))


@examples(150)
@given(mask_pairs(nonempty=True))
def test_surface_metrics_agree_with_medpy(pair):
    medpy = pytest.importorskip("medpy.metric.binary", reason="medpy is installed for benchmarks only")

    p, t, spacing = pair
    P, T = one(p), one(t)
    close(surfaces.hd95(P, T, spacing, convention="pooled"), [[medpy.hd95(p, t, spacing)]])
    close(surfaces.hausdorff_distance(P, T, spacing), [[medpy.hd(p, t, spacing)]])
    close(surfaces.assd(P, T, spacing), [[medpy.assd(p, t, spacing)]])
    close(surfaces.asd(P, T, spacing), [[medpy.asd(p, t, spacing)]])


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
    close(surfaces.hausdorff_distance(one(p), one(t), spacing), [[reference.GetHausdorffDistance()]])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 0.9), (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("far", [False, True])
def test_large_masks_agree_with_a_tree_of_all_points(spacing, far):
    """Large enough for the search to stop early, and far enough apart for it to give up."""
    from scipy.ndimage import gaussian_filter
    from scipy.spatial import cKDTree

    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(48)] * 3, indexing="ij"))
    masks = []
    for centre in ((20, 22, 20), (42, 40, 41) if far else (23, 22, 24)):
        distance = np.sqrt(((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0))
        masks.append(distance + 25 * gaussian_filter(rng.standard_normal((48,) * 3), 2) < (5 if far else 14))
    p, t = masks
    points = [np.argwhere(surface(mask)) * np.asarray(spacing) for mask in (p, t)]
    expected = [cKDTree(b).query(a)[0] for a, b in (points, points[::-1])]
    found = surfaces.surface_distances(one(p), one(t), spacing)[0][0]
    for actual, distances in zip(found, expected):
        close(np.sort(actual.numpy()), np.sort(distances))


def test_surface_metrics_by_hand():
    """Two voxels 2 rows and 3 columns apart, with the spacing in the order of the axes."""
    p = torch.zeros(1, 9, 9, dtype=torch.bool)
    t = p.clone()
    p[0, 4, 4] = t[0, 6, 7] = True
    expected = math.hypot(2 * 5.0, 3 * 0.5)
    for metric in SURFACE:
        assert metric(p, t, (5.0, 0.5)).item() == pytest.approx(expected)
    assert surfaces.nsd(p, t, (5.0, 0.5), tolerance=expected).item() == 1
    assert surfaces.nsd(p, t, (5.0, 0.5), tolerance=0.999 * expected).item() == 0


def test_the_border_of_the_image_is_a_surface():
    full = torch.ones(1, 5, 5, dtype=torch.bool)
    ring = full.clone()
    ring[:, 1:4, 1:4] = False
    found = surfaces.surface_distances(full, ring, (1.0, 1.0))[0][0]
    assert len(found.prediction_to_truth) == len(found.truth_to_prediction) == 16
    assert surfaces.hausdorff_distance(full, ring, (1.0, 1.0)).item() == 0


def test_a_rounded_distance_is_within_the_tolerance():
    p = torch.zeros(1, 9, 9, dtype=torch.bool)
    t = p.clone()
    p[0, 0, 0] = t[0, 3, 0] = True
    assert surfaces.nsd(p, t, (0.1, 1.0), tolerance=0.3).item() == 1  # 3 * 0.1 > 0.3


@examples(100)
@given(label_pairs())
def test_surface_metrics_of_labels_are_those_of_their_masks(case):
    p, t, labels, spacing = case
    ours = surfaces.surface_metrics(p, t, spacing, labels, nsd_tolerance=1.0)
    directed = surfaces.asd(p, t, spacing, labels)
    assert ours["hd95"].shape == (len(p), len(labels))
    for b in range(len(p)):
        for l, label in enumerate(labels):
            masks = p[b : b + 1] == label, t[b : b + 1] == label
            single = surfaces.surface_metrics(*masks, spacing, nsd_tolerance=1.0)
            for name, value in single.items():
                close(ours[name][b, l], value[0, 0], rtol=1e-12)
            close(directed[b, l], surfaces.asd(*masks, spacing)[0, 0], rtol=1e-12)


@examples(80)
@given(mask_pairs(), st.integers(0, 5))
def test_symmetry_permutation_flip_scale_and_padding(pair, seed):
    p, t, spacing = pair
    P, T = one(p), one(t)
    rng = np.random.default_rng(seed)
    expected = surfaces.surface_metrics(P, T, spacing, nsd_tolerance=1.0)

    def same(values, scale=1.0):
        for name, value in values.items():
            close(value, expected[name] * (1.0 if name == "nsd" else scale))

    same(surfaces.surface_metrics(T, P, spacing, nsd_tolerance=1.0))
    order = rng.permutation(p.ndim)
    turned = [one(x.transpose(order)) for x in (p, t)]
    same(surfaces.surface_metrics(*turned, [spacing[k] for k in order], nsd_tolerance=1.0))
    same(surfaces.surface_metrics(P.flip(1), T.flip(1), spacing, nsd_tolerance=1.0))
    same(surfaces.surface_metrics(P, T, [4 * s for s in spacing], nsd_tolerance=4.0), scale=4.0)
    same(surfaces.surface_metrics(*(one(np.pad(x, 2)) for x in (p, t)), spacing, nsd_tolerance=1.0))


def test_spacing_per_case():
    torch.manual_seed(0)
    p, t = torch.rand(2, 2, 6, 7) > 0.7
    spacings = [(1.0, 2.0), (3.0, 0.5)]
    ours = surfaces.hd95(p, t, spacings)
    for b, spacing in enumerate(spacings):
        close(ours[b], surfaces.hd95(p[b : b + 1], t[b : b + 1], spacing)[0])


def test_tolerance_per_label():
    torch.manual_seed(0)
    p, t = torch.randint(0, 3, (2, 1, 8, 8))
    ours = surfaces.nsd(p, t, (1.0, 1.0), [1, 2], tolerance=[0.0, 1.0])
    close(ours[:, 0], surfaces.nsd(p, t, (1.0, 1.0), [1], tolerance=0.0)[:, 0])
    close(ours[:, 1], surfaces.nsd(p, t, (1.0, 1.0), [2], tolerance=1.0)[:, 0])


def test_surface_metrics_of_empty_masks():
    spacing = (1.0, 1.0)
    for metric in SURFACE:
        close(metric(NONE, NONE, spacing), [[NAN]])
        close(metric(NONE, NONE, spacing, both_empty=0.0), [[0.0]])
        for pair in ((NONE, SOME), (SOME, NONE)):
            close(metric(*pair, spacing), [[INF]])
            close(metric(*pair, spacing, one_empty=373.1), [[373.1]])
    close(surfaces.nsd(NONE, NONE, spacing, tolerance=1.0), [[NAN]])
    close(surfaces.nsd(NONE, NONE, spacing, tolerance=1.0, both_empty=1.0), [[1.0]])
    close(surfaces.nsd(NONE, SOME, spacing, tolerance=1.0), [[0.0]])
    close(surfaces.nsd(SOME, NONE, spacing, tolerance=1.0), [[0.0]])
    every = surfaces.surface_metrics(NONE, SOME, spacing, nsd_tolerance=1.0, one_empty=5.0)
    assert {name: value.item() for name, value in every.items()} == {"hd95": 5.0, "assd": 5.0, "nsd": 0.0}
    assert "nsd" not in surfaces.surface_metrics(SOME, SOME, spacing)


def test_distances_of_empty_masks():
    found = surfaces.surface_distances(SOME, NONE, (1.0, 1.0))[0][0]
    assert found.prediction_to_truth.tolist() == [INF] and found.truth_to_prediction.tolist() == []
    found = surfaces.surface_distances(NONE, NONE, (1.0, 1.0))[0][0]
    assert [len(x) for x in found] == [0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: surfaces.hd95(MASK, MASK[:, 1:], (1, 1)), "same shape"),
        (lambda: surfaces.hd95(MASK, MASK, (1, 1, 1)), "spacing must be 2 numbers"),
        (lambda: surfaces.hd95(MASK, MASK, 1.0), "spacing must be 2 numbers"),
        (lambda: surfaces.hd95(MASK, MASK, "ab"), "spacing must be 2 numbers"),
        (lambda: surfaces.hd95(MASK, MASK, (1, 0)), "positive"),
        (lambda: surfaces.hd95(MASK, MASK, (1, NAN)), "positive"),
        (lambda: surfaces.hd95(MASK[..., None, None], MASK[..., None, None], (1,) * 4), "two or three"),
        (lambda: surfaces.hd95(MASK, MASK, (1, 1), convention="median"), "convention"),
        (lambda: surfaces.hausdorff_distance(MASK, MASK, (1, 1), percentile=101), "percentile"),
        (lambda: surfaces.nsd(MASK, MASK, (1, 1), tolerance=-1.0), "tolerance"),
        (lambda: surfaces.nsd(MASK, MASK, (1, 1), tolerance=[1.0, 1.0]), "tolerance"),
    ],
)
def test_invalid_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_examples_of_the_documentation():
    result = doctest.testmod(surfaces, verbose=False)
    assert result.attempted >= 2 and result.failed == 0
