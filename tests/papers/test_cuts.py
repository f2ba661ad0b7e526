"""CUTS's mathematics, each part against a slow and obvious reference, an analytic case or another library."""

import doctest
import importlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from papers.cuts import baselines, condensation, data, model, sampler, scores, spectral
from papers.cuts.stopping import EarlyStopping
from shared.errors import InputError


@pytest.mark.parametrize("name", ["model", "sampler", "condensation", "spectral", "scores", "baselines"])
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"papers.cuts.{name}"), extraglobs={"torch": torch, "np": np})
    assert result.failed == 0
    assert result.attempted or name == "sampler"


# --- stage 1 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "parameters"), [(1, 269_920), (3, 270_720)])
def test_encoder_has_the_paper_s_size(channels, parameters):
    assert sum(p.numel() for p in model.Encoder(channels).parameters()) == parameters


def test_receptive_field_is_17_pixels():
    encoder = model.Encoder(1, (3, 3, 3, 3)).double().eval()
    image = torch.rand(1, 1, 41, 41, dtype=torch.float64, requires_grad=True)
    encoder(image)[0, :, 20, 20].sum().backward()
    rows, columns = image.grad[0, 0].nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 28, 12, 28)


def test_a_constant_image_has_no_frame():
    embedding = model.Encoder(1, (4, 4)).eval()(torch.full((1, 1, 20, 20), 0.7))
    torch.testing.assert_close(embedding, embedding[..., 10:11, 10:11].expand_as(embedding))


def test_embedding_has_unit_rows_and_needs_evaluation_mode():
    network = model.CUTS(1, (4, 8))
    with pytest.raises(ValueError, match="eval"):
        model.embed(network, torch.rand(1, 24, 24))
    rows = model.embed(network.eval(), torch.rand(1, 24, 20))
    assert rows.shape == (480, 8)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(480))


def test_take_pixels_takes_rows_and_columns():
    maps = torch.rand(2, 3, 6, 7)
    pixels = torch.tensor([[[0, 6], [5, 1]], [[2, 3], [4, 4]]])
    taken = model.take_pixels(maps, pixels)
    for b in range(2):
        for s in range(2):
            torch.testing.assert_close(taken[b, s], maps[b, :, pixels[b, s, 0], pixels[b, s, 1]])


def test_contrastive_loss_against_loops():
    anchors, positives, tau = torch.randn(3, 5, 7), torch.randn(3, 5, 7), 0.3
    losses = []
    for z, z_plus in zip(anchors, positives):
        s = [[F.cosine_similarity(a, p, dim=0).item() for p in z_plus] for a in z]
        above = sum(math.exp(s[i][i] / tau) for i in range(5))
        below = sum(math.exp(s[i][j] / tau) for i in range(5) for j in range(5) if i != j)
        losses.append(-math.log(above / below))
    assert model.contrastive_loss(anchors, positives, tau).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_losses_are_weighted():
    assert model.cuts_loss(torch.tensor(3.0), torch.tensor(5.0), 0.01).item() == pytest.approx(0.03 + 4.95)
    x, y = torch.rand(2, 4, 25), torch.rand(2, 4, 25)
    expected = sum((a - b) ** 2 for a, b in zip(x.flatten().tolist(), y.flatten().tolist())) / 200
    assert model.reconstruction_loss(x, y).item() == pytest.approx(expected, rel=1e-5)


def test_patch_ssim_is_that_of_scikit_image():
    from skimage.metrics import structural_similarity

    x, y = torch.rand(3, 5, 5, dtype=torch.float64), torch.rand(3, 5, 5, dtype=torch.float64)
    expected = structural_similarity(x.numpy(), y.numpy(), win_size=5, data_range=2, channel_axis=0)
    assert sampler.patch_ssim(x, y).item() == pytest.approx(expected, rel=1e-9)


def test_patch_ssim_of_flat_patches():
    flat = torch.zeros(1, 5, 5)
    assert sampler.patch_ssim(flat, flat).item() == pytest.approx(1)
    assert sampler.patch_ssim(flat, flat + 1).item() < 0.01


def test_patches_at_are_centred():
    image = torch.arange(100.0).reshape(1, 10, 10)
    patch = sampler.patches_at(image, torch.tensor([[4, 6]]), 5)
    torch.testing.assert_close(patch[0], image[:, 2:7, 4:9])


def test_anchors_keep_off_the_border():
    anchors = sampler.draw_anchors((9, 30), 2000, patch=5)
    assert anchors[:, 0].unique().tolist() == list(range(2, 7))
    assert anchors[:, 1].unique().tolist() == list(range(2, 28))


def test_positives_are_near_and_the_most_similar():
    torch.manual_seed(0)
    image = torch.zeros(1, 40, 40)
    image[:, :, 1::2] = 1.0  # stripes: a shift by two columns is identical, by one is the opposite
    anchors = sampler.draw_anchors((40, 40), 200)
    positives = sampler.draw_positives(image, anchors, candidates=10)
    shift = positives - anchors
    assert shift.abs().max() <= 5
    assert (shift.abs().sum(1) > 0).all(), "an anchor is not its own positive"
    # of ten candidates at least one has the same phase, but for one in a thousand
    assert ((shift[:, 1] % 2) == 0).float().mean() > 0.97
    assert positives.min() >= 2 and positives.max() <= 37


def test_without_a_similar_patch_the_diagonal_neighbour_is_taken():
    torch.manual_seed(0)
    anchors = torch.tensor([[3, 30], [30, 3], [19, 20]])
    positives = sampler.draw_positives(torch.rand(1, 40, 40), anchors, threshold=2.0)
    assert positives.tolist() == [[4, 29], [29, 4], [20, 19]]


# --- condensation ------------------------------------------------------------------------------------------


def reference_affinity(distance: float, bandwidth: float) -> float:
    value = math.exp(-min((distance / bandwidth) ** 40, 700.0))
    return value if value >= 1e-4 else 0.0


def reference_space(points: np.ndarray, neighbours: int, steps: int) -> np.ndarray:
    """Step 1 with loops: every point walks `steps` steps to where its neighbours are."""
    n = len(points)
    distance = [[math.dist(p, q) for q in points] for p in points]
    radius = [sorted(row)[neighbours] for row in distance]  # the point itself is the first
    one_sided = [[reference_affinity(distance[i][j], radius[i]) for j in range(n)] for i in range(n)]
    both = np.array([[(one_sided[i][j] + one_sided[j][i]) / 2 for j in range(n)] for i in range(n)])
    return np.linalg.matrix_power(both / both.sum(1, keepdims=True), steps) @ (points - points.mean(0))


def reference_condensation(points, epsilon, growth, met, steps, iterations):
    """Step 2 with loops: clusters as lists of the points in them, places and masses beside."""
    clusters, places = [[k] for k in range(len(points))], [p.copy() for p in points]

    def merged():
        group = list(range(len(places)))
        changed = True
        while changed:  # whoever is near joins, until nobody changes
            changed = False
            for i in range(len(places)):
                for j in range(i):
                    if group[i] != group[j] and math.dist(places[i], places[j]) < met:
                        old, new = max(group[i], group[j]), min(group[i], group[j])
                        group = [new if g == old else g for g in group]
                        changed = True
        kept = sorted(set(group))
        parts = [[k for k, g in enumerate(group) if g == name] for name in kept]
        return [sum((clusters[k] for k in part), []) for part in parts], [
            np.mean([places[k] for k in part], axis=0) for part in parts
        ]

    def labels():
        row = [0] * len(points)
        for number, members in enumerate(clusters):
            for k in members:
                row[k] = number
        return row

    history = [labels()]
    clusters, places = merged()
    history.append(labels())
    while len(clusters) > 1 and len(history) <= iterations:
        epsilon *= growth
        mass = [len(members) for members in clusters]
        kernel = np.array(
            [
                [(mass[i] + mass[j]) / 2 * reference_affinity(math.dist(p, q), epsilon) for j, q in enumerate(places)]
                for i, p in enumerate(places)
            ]
        )
        places = list(np.linalg.matrix_power(kernel / kernel.sum(1, keepdims=True), steps) @ np.array(places))
        clusters, places = merged()
        history.append(labels())
    return history


def same_partition(a, b) -> bool:
    pairs = set(zip(list(a), list(b)))
    return len(pairs) == len(set(a)) == len(set(b))


def three_groups(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([c + 0.25 * rng.normal(size=(8, 3)) for c in rng.normal(size=(3, 3))])


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize(("seed", "steps"), [(0, 1), (1, 3), (2, 13)])
def test_condensation_is_the_definition(seed, steps, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(condensation, "DENSE", 1)
    points = three_groups(seed)
    settings = {"epsilon": 0.15, "growth": 1.05, "met": 0.02, "steps": steps, "iterations": 60}
    expected = reference_condensation(points, **settings)
    hierarchy = condensation.condense(points, **settings)
    assert len(hierarchy.partitions) == len(expected)
    assert len({len(set(row)) for row in expected}) > 5, "the case must be worth testing"
    for iteration, row in enumerate(expected):
        assert same_partition(hierarchy.labels(iteration), row), iteration


@pytest.mark.parametrize("neighbours", [4, 22])
def test_the_space_is_the_definition(neighbours):
    points = three_groups(3)
    expected = reference_space(points, neighbours, steps=4)
    found = condensation.diffused(points, neighbours=neighbours, steps=4)
    distances = [np.linalg.norm(x[:, None] - x, axis=-1) for x in (found, expected)]  # the axes may point elsewhere
    np.testing.assert_allclose(*distances, atol=1e-9)
    assert distances[0].max() > 0.005


def test_neighbours_beyond_those_asked_for_at_first_are_found():
    # A ring of 60 points at one distance from its centre: all of them are within reach of the centre's third neighbour.
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    points = np.concatenate([[[0.0, 0.0]], np.stack([np.cos(angle), np.sin(angle)], 1)])
    affinities = condensation.neighbour_affinities(points, np.ones(61), neighbours=3).toarray()
    np.testing.assert_allclose(affinities[0, 1:], math.exp(-1))
    assert affinities[0, 0] == 1


def test_principal_components_keep_distances_and_order_variances():
    points = np.random.default_rng(0).normal(size=(30, 6)) * np.arange(1, 7)
    found = condensation.principal_components(points)
    np.testing.assert_allclose(found.T @ found, np.diag(np.square(found).sum(0)), atol=1e-9)
    assert (np.diff(np.square(found).sum(0)) < 0).all()
    cut = condensation.principal_components(points, 2)
    np.testing.assert_allclose(cut, found[:, :2])


def test_mass_is_as_many_equal_points():
    rng = np.random.default_rng(3)
    points, masses = rng.normal(size=(12, 2)), np.array([1, 2, 3] * 4)
    repeated = np.repeat(points, masses, axis=0)
    one, many = (condensation.diffused(x, m, neighbours=5, steps=2) for x, m in ((points, masses), (repeated, None)))
    apart, of_many = (np.linalg.norm(x[:, None] - x, axis=-1) for x in (np.repeat(one, masses, axis=0), many))
    np.testing.assert_allclose(apart, of_many, atol=1e-9)
    settings = {"epsilon": 0.4, "growth": 1.1, "met": 0.05}
    heavy = condensation.condense(points, masses, **settings)
    equal = condensation.condense(repeated, **settings)
    assert len(heavy.partitions) == len(equal.partitions)
    for iteration in range(1, len(heavy.partitions)):
        assert same_partition(np.repeat(heavy.labels(iteration), masses), equal.labels(iteration))


def test_two_points_meet_when_they_should():
    # Distance d: K = e^-(d/eps)^40; t powers of P make it d ((1 - K) / (1 + K))^t. Below the cut nothing moves.
    distance, epsilon, growth, met, steps = 1.0, 0.8, 1.02, 0.1, 3
    hierarchy = condensation.condense(
        np.array([[0.0], [distance]]), epsilon=epsilon, growth=growth, met=met, steps=steps
    )
    expected = 0
    while distance >= met:
        expected, epsilon = expected + 1, epsilon * growth
        kernel = reference_affinity(distance, epsilon)
        distance *= ((1 - kernel) / (1 + kernel)) ** steps
    assert expected > 8
    assert hierarchy.segments.tolist() == [2] * (expected + 1) + [1]


def test_the_knee_of_two_lines():
    # Singular values 1 and a: the entropy falls at first and is flat later. Slow reference with numpy's own fits.
    values = np.array([1.0, 0.9, 0.5, 0.3, 0.2])
    most = 9
    entropy = []
    for power in range(1, most + 1):
        shares = values**power / sum(values**power)
        entropy.append(-sum(p * math.log(p) for p in shares))
    errors = {}
    for knee in range(1, most - 1):
        left = np.polyfit(range(knee + 1), entropy[: knee + 1], 1)
        right = np.polyfit(range(knee - 1, most), entropy[knee - 1 :], 1)
        errors[knee] = sum(abs(np.polyval(left, t) - entropy[t]) for t in range(knee + 1))
        errors[knee] += sum(abs(np.polyval(right, t) - entropy[t]) for t in range(knee, most))
    assert condensation.entropy_knee(np.diag(values), most) == min(errors, key=errors.get)
    assert condensation.entropy_knee(np.diag(values), 2) == 1


def test_the_first_bandwidth():
    points = np.random.default_rng(0).normal(size=(32, 3))
    assert condensation.first_bandwidth(points) == pytest.approx(0.1 * np.sqrt(np.var(points)) * 2)


def test_levels_are_nested_and_never_grow():
    rng = np.random.default_rng(0)
    groups = rng.normal(size=(5, 1, 1, 3)) + 0.3 * rng.normal(size=(5, 8, 1, 3))
    points = (groups + 0.03 * rng.normal(size=(5, 8, 75, 3))).reshape(-1, 3)
    hierarchy = condensation.condense_pixels(points, neighbours=30)
    assert hierarchy.partitions.shape[1] == 3000 and hierarchy.epsilons[2] > 0
    assert (np.diff(hierarchy.segments) <= 0).all() and hierarchy.segments[-1] == 1
    levels = list(hierarchy.levels())
    assert len(levels) > 5 and scores.nested_share(levels) == 1
    assert all(2 <= len(np.unique(level)) <= 100 for level in levels)
    assert len({level.tobytes() for level in levels}) == len(levels)


def test_degenerate_clouds():
    assert condensation.condense(np.ones((7, 2)), epsilon=1.0).segments.tolist() == [7, 1]
    assert condensation.condense(np.ones((1, 2))).segments[-1] == 1
    constant = condensation.condense_pixels(np.ones((600, 4), np.float32))
    assert constant.segments.tolist() == [1] and constant.labels(-1).tolist() == [0] * 600
    two = condensation.condense_pixels(np.repeat([[1.0, 0.0], [0.0, 1.0]], [500, 3], axis=0))
    assert two.segments[0] == 2 and two.masses.tolist() == [3, 500]
    with pytest.raises(ValueError, match="NaN"):
        condensation.condense(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="masses"):
        condensation.condense(np.random.rand(3, 2), np.array([1, 0, 1]))


def test_a_masked_background_costs_nothing():
    # Half of the pixels are one point; a graph of their pairs would have 64 million entries.
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.repeat([[1.0, 0.0, 0.0]], 8000, axis=0), rng.normal(size=(400, 3))])
    hierarchy = condensation.condense_pixels(rows, iterations=3)
    assert hierarchy.partitions.shape[1] == 401
    assert len(np.unique(hierarchy.labels(1)[:8000])) == 1


def hierarchy_of(rows, masses):
    rows = np.array(rows, np.int32)
    return condensation.Hierarchy(rows, np.arange(rows.shape[1]), np.array(masses, float), np.zeros(len(rows)))


def test_persistence_counts_intact_iterations():
    # a|b|c|d: b joins a after 1 more row, c and d stay apart for 4 rows and then join.
    rows = [[0, 1, 2, 3], [0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 1, 2], [0, 0, 1, 1], [0, 0, 0, 0]]
    found = condensation.segments_by_persistence(hierarchy_of(rows, [10, 10, 10, 10]), change=0.01)
    ages = {(s.iteration, s.cluster): s.persistence for s in found}
    assert ages == {(1, 0): 2, (1, 1): 2, (4, 0): 3, (3, 1): 4, (3, 2): 4, (4, 1): 1}
    painted = condensation.persistent_structures(hierarchy_of(rows, [10, 10, 10, 10]))
    assert same_partition(painted, [0, 0, 1, 2])


def test_a_crumb_does_not_end_a_segment():
    rows = [[0, 1, 2], [0, 1, 1], [0, 1, 1], [0, 0, 0]]
    large = condensation.segments_by_persistence(hierarchy_of(rows, [500, 995, 5]), change=0.01)
    assert {(s.iteration, s.cluster, s.persistence) for s in large} == {(2, 0, 3), (2, 1, 3)}
    strict = condensation.segments_by_persistence(hierarchy_of(rows, [500, 995, 5]), change=0.001)
    assert (0, 1, 1) in {(s.iteration, s.cluster, s.persistence) for s in strict}


def test_persistent_structures_of_one_cluster():
    assert condensation.persistent_structures(hierarchy_of([[0, 0]], [1, 1])).tolist() == [0, 0]


# --- spectral k-means --------------------------------------------------------------------------------------


def test_diffusion_coordinates_are_eigenvectors_of_the_walk():
    torch.manual_seed(0)
    points = torch.rand(40, 3, dtype=torch.float64)
    found = spectral.diffusion_coordinates(points, dimensions=3, landmarks=40, neighbours=5)
    kth = torch.cdist(points, points).sort(1).values[:, 4]
    affinity = torch.exp(-(torch.cdist(points, points) ** 2) / (kth[:, None] * kth))
    walk = (affinity / affinity.sum(1, keepdim=True)) @ (affinity.T / affinity.sum(0)[:, None])
    for column in found.T:
        image = walk @ column
        assert abs((affinity.sum(1) * column).sum()) < 1e-6 * affinity.sum()  # not the constant one
        value = (image @ column) / (column @ column)
        assert 0 < value < 1
        torch.testing.assert_close(image, value * column, rtol=1e-4, atol=1e-7)


def test_diffusion_separates_rings_that_kmeans_cannot():
    angle = torch.linspace(0, 2 * torch.pi, 301)[:-1]
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    rings, truth = torch.cat([ring, 4 * ring]), np.repeat([0, 1], 300)
    first = spectral.diffusion_coordinates(rings)[:, :1].numpy()
    assert same_partition(spectral.kmeans(first, 2), truth)
    assert not same_partition(spectral.kmeans(rings.numpy(), 2), truth)


def test_spectral_kmeans_of_equal_points():
    assert spectral.spectral_kmeans(torch.ones(50, 3), clusters=3).shape == (50,)


# --- scores ------------------------------------------------------------------------------------------------


def test_binarise_takes_the_most_frequent_cluster():
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(0, 4, (20, 20)), rng.random((20, 20)) < 0.3
    votes = [int(((labels == k) & truth).sum()) for k in range(4)]
    assert (scores.binarise(labels, truth) == (labels == int(np.argmax(votes)))).all()
    assert not scores.binarise(labels, np.zeros_like(truth)).any()


def masks():
    rows, columns = np.mgrid[:40, :48]
    return np.hypot(rows - 20, columns - 22) < 9, np.hypot(rows - 18, (columns - 25) * 0.8) < 8


def test_dice_and_hausdorff_are_those_of_libraries():
    from skimage.metrics import hausdorff_distance

    a, b = masks()
    assert scores.hausdorff(a, b) == pytest.approx(hausdorff_distance(a, b))
    assert scores.dice(a, b) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    empty = np.zeros_like(a)
    assert scores.hausdorff(a, empty) == pytest.approx(math.hypot(40, 48))
    assert scores.hausdorff(empty, empty) == 0 and scores.dice(empty, empty) == 1


def test_ssim_and_rmse_are_those_of_scikit_image():
    from skimage.metrics import structural_similarity

    a, b = masks()
    found = scores.measure(a, b)
    expected = structural_similarity(a.astype(float), b.astype(float), data_range=1.0)
    assert found["ssim"] == pytest.approx(expected, rel=1e-9)
    assert found["rmse"] == pytest.approx(math.sqrt(np.mean((a.astype(float) - b) ** 2)))


def test_ergas_against_loops():
    a, b = (mask[:24, 8:36] for mask in masks())
    values = []
    for row in range(4, 24 - 4):
        for column in range(4, 28 - 4):
            window = (slice(row - 4, row + 4), slice(column - 4, column + 4))
            error, mean = np.mean((a[window] ^ b[window]).astype(float)), b[window].mean() / 64
            values.append(400 * math.sqrt(error) / (mean or 1.0))
    assert scores.ergas(a, b) == pytest.approx(np.mean(values), rel=1e-6)


def test_best_level_is_the_best():
    a, b = masks()
    levels = [np.zeros_like(a, int), b.astype(int), a.astype(int)]
    assert scores.best_level(levels, a) == (1.0, 2)
    assert scores.best_level(levels[:2], a) == (scores.dice(b, a), 1)


def test_nested_share_sees_a_crossing():
    halves = [np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 0]])]
    assert scores.nested_share(halves) == 0
    assert scores.nested_share([np.array([[0, 1, 2, 3]]), halves[0]]) == 1


def test_scale_gap_counts_segments():
    fine = np.array([[0, 1, 2, 3, 4, 5, 6, 7]])
    coarse = np.array([[0, 0, 0, 0, 0, 0, 0, 7]])
    small, large = fine == 7, fine == 2
    assert scores.scale_gap([fine, coarse], small, large) == pytest.approx(2)  # 8 segments against 2


# --- data and baselines ------------------------------------------------------------------------------------


def test_mri_is_normalised_as_in_the_released_code():
    image = np.r_[np.zeros(5), np.linspace(1, 100, 995)].reshape(20, 50)
    top = np.percentile(image, 99)
    bright = data.normalise_mri(image, zeros_to_one=True).ravel()
    assert (bright[:5] == 1).all() and bright.max() == 1
    assert bright[10] == pytest.approx(2 * image.ravel()[10] / top - 1, abs=1e-6)
    assert (data.normalise_mri(image, zeros_to_one=False).ravel()[:5] == -1).all()


def test_to_square_pads_in_the_centre():
    label = np.zeros((10, 20), bool)
    label[3:6, 4:9] = True
    square = data.to_square(label, 20, label=True)
    assert square.shape == (20, 20) and (square[5:15] == label).all()
    assert data.to_square(np.random.rand(30, 30), 20, label=False).shape == (20, 20)


def cases(count):
    return [
        data.Case(f"tumour/{k:02d}", np.zeros((1, 24, 24), np.float32), np.zeros((24, 24), bool)) for k in range(count)
    ]


def test_splits_are_disjoint_and_complete():
    everything = cases(23)
    parts = data.split(everything, (0.2, 0.1))
    assert sorted(c.name for part in parts for c in part) == [c.name for c in everything]
    test = {case.name for case in parts[0]}
    assert {c.name for c in data.cases_to_score(everything, supervised=True)} == test
    assert test <= {c.name for c in data.cases_to_score(everything, supervised=False, most=6)}
    assert len(data.cases_to_score(everything, supervised=False)) == 23


def test_broken_files_are_named(tmp_path):
    (tmp_path / "brain_tumor").mkdir()
    path = tmp_path / "brain_tumor" / "a.npz"
    for arrays, word in (
        ({"image": np.zeros((30, 30))}, "label"),
        ({"image": np.zeros((30, 30)), "label": np.zeros((20, 30))}, "shape"),
        ({"image": np.zeros((30, 30)), "label": np.full((30, 30), 3)}, "labels 0 and 1"),
        ({"image": np.full((30, 30), np.nan), "label": np.zeros((30, 30))}, "finite"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=word) as raised:
            data.read_datasets(tmp_path)
        assert "a.npz" in str(raised.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "method", [baselines.otsu_watershed, baselines.felzenszwalb_labels, baselines.slic_labels, baselines.raw_kmeans]
)
def test_baselines_find_a_clear_disc(method, channels):
    rows, columns = np.mgrid[:48, :48]
    disc = np.hypot(rows - 24, columns - 22) < 10
    noise = 0.05 * np.random.default_rng(0).normal(size=(channels, 48, 48))
    image = (np.where(disc, 0.8, -0.6) + noise).clip(-1, 1).astype(np.float32)
    settings = {"scale": 20} if method is baselines.felzenszwalb_labels else {}
    settings |= {"clusters": 2} if method is baselines.raw_kmeans else {}
    labels = method(image, **settings)
    # SLIC's ten superpixels cut the disc; one of them is what it can offer; Felzenszwalb's blur moves edges
    assert scores.dice(scores.binarise(labels, disc), disc) > (0.4 if method is baselines.slic_labels else 0.85)
    flat = method(np.zeros((channels, 32, 32), np.float32))
    assert flat.shape == (32, 32)


def test_dfc_loss_against_its_parts():
    response = torch.randn(1, 4, 5, 6)
    labels = response.argmax(1)
    terms = [-response[0, :, r, c].log_softmax(0)[labels[0, r, c]].item() for r in range(5) for c in range(6)]
    down = (response[:, :, 1:] - response[:, :, :-1]).abs().mean().item()
    right = (response[..., 1:] - response[..., :-1]).abs().mean().item()
    expected = np.mean(terms) + 0.5 * (down + right)
    assert baselines.dfc_loss(response, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_unet_loss_is_zero_for_a_perfect_answer():
    mask = (torch.rand(2, 1, 8, 8) > 0.5).float()
    assert baselines.unet_loss(40 * (2 * mask - 1), mask).item() == pytest.approx(0, abs=1e-5)
    assert baselines.unet_loss(torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)).item() == pytest.approx(
        math.log(2) + 1 - 2 / 3, rel=1e-5
    )


def test_early_stopping_keeps_the_best_weights_and_resumes():
    network, stopping = torch.nn.Linear(1, 1), EarlyStopping(epochs=50, patience=3)
    kept = None
    for number, loss in enumerate([3.0, 1.0, 2.0, 2.0, 2.0]):
        assert not stopping.finished
        torch.nn.init.constant_(network.weight, number)
        stopping.update(loss, network)
        kept = kept if number != 1 else network.weight.detach().clone()
    assert stopping.finished
    again = EarlyStopping(epochs=50, patience=3)
    again.load_state_dict(stopping.state_dict())
    assert again.finished and torch.equal(again.state["weights"]["weight"], kept)
