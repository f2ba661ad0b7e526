"""CGC: its losses against loops and analytic cases, its proposal, its regions, and that no label is looked at."""

import csv
import dataclasses
import doctest
import importlib
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from benchmarks.standins import brain_tumour as simulator
from benchmarks.standins import cgc as standin
from papers.cgc import data, inference, model, proposal, regions
from papers.cgc.brightness import threshold_without_labels
from papers.cgc.mumford_shah import (
    MumfordShahNet,
    intensity_means,
    mumford_shah_loss,
    mumford_shah_proposal,
    total_variation,
)
from shared import nifti
from shared.errors import InputError
from tests.smoke import smoke_config, train_variant


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standin") / "brats"
    standin.generate(folder, seed=1, size="smoke")
    return folder


@pytest.fixture(scope="module")
def volumes(root):
    return data.Volumes(root, "train", 0.34)


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path_factory):
    """Proposals are kept in a folder of the test."""
    folder = tmp_path_factory.mktemp("kept")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "cgc-proposals"


def some_cells(n=9, channels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, generator=generator, dtype=torch.float64)


# --- the fine-grained loss -------------------------------------------------------------------------------


def slow_fine_loss(z, classes, temperature, sim, anchors):
    """The poster's formula with loops."""
    used = [i for i in range(len(z)) if classes[i] >= 0]
    terms = []
    for i in used:
        if anchors == "lesion" and classes[i] != 1:
            continue
        positives = [p for p in used if p != i and classes[p] == classes[i]]
        if not positives:
            continue
        below = sum(math.exp(sim(z[i], z[x]) / temperature) for x in used if x != i)
        terms.append(
            -sum(math.log(math.exp(sim(z[i], z[p]) / temperature) / below) for p in positives) / len(positives)
        )
    return sum(terms) / len(terms)


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def printed(a, b):
    return float(a @ b / (a.norm() + b.norm()))


@pytest.mark.parametrize("anchors", ["lesion", "both"])
@pytest.mark.parametrize("sim", [cosine, printed])
@pytest.mark.parametrize("temperature", [0.2, 0.9])
def test_fine_loss_is_the_formula(sim, anchors, temperature):
    z, classes = some_cells(), torch.tensor([1, 0, 1, -1, 0, 0, 1, -1, 0])
    expected = slow_fine_loss(z, classes.tolist(), temperature, sim, anchors)
    found = model.fine_loss(z, classes, temperature, sim.__name__, anchors)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_printed_similarity_is_half_the_cosine_of_unit_vectors():
    z = torch.nn.functional.normalize(some_cells(), dim=1)
    torch.testing.assert_close(model.similarity(z, z, "printed"), model.similarity(z, z) / 2)
    classes = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0])
    twice = model.fine_loss(z, classes, 0.2, "cosine")
    torch.testing.assert_close(model.fine_loss(z, classes, 0.1, "printed"), twice)


def test_fine_loss_of_identical_cells_counts_them():
    z = torch.ones(7, 3)  # all shares are 1 / 6
    loss = model.fine_loss(z, torch.tensor([1, 1, 1, 0, 0, 0, 0]))
    assert loss.item() == pytest.approx(math.log(6), rel=1e-6)


@pytest.mark.parametrize("classes", [[0, 0, 0], [-1, -1, -1], [1, 0, 0], [1, -1, -1]])
def test_fine_loss_without_a_pair_is_zero_with_a_gradient(classes):
    z = some_cells(3).float().requires_grad_()
    loss = model.fine_loss(z, torch.tensor(classes))
    loss.backward()
    assert loss.item() == 0 and torch.equal(z.grad, torch.zeros_like(z))


def test_fine_loss_pulls_lesion_cells_together_and_away_from_normal_ones():
    z = some_cells(12).float().requires_grad_()
    classes = torch.tensor([1] * 4 + [0] * 8)

    def contrast():
        s = model.similarity(z, z).detach()
        return s[:4, :4].mean() - s[:4, 4:].mean()

    before = contrast()
    for _ in range(100):
        (gradient,) = torch.autograd.grad(model.fine_loss(z, classes), z)
        z.data -= 0.3 * gradient
    assert contrast() > before + 0.5


def test_many_cells_are_thinned_evenly():
    picked = model.pick(torch.arange(1000), 256)
    assert len(picked) == len(set(picked.tolist())) == 256 and picked[0] == 0 and picked[-1] == 999
    assert picked.diff().max() <= 4
    assert torch.equal(model.pick(torch.arange(5), 256), torch.arange(5))


# --- classes of regions and cells ------------------------------------------------------------------------


def test_classes_of_regions():
    p = torch.zeros(3, 10, 10, 10)
    p[0].view(-1)[:20] = 1  # 2 %
    p[1].view(-1)[:1] = 1  # 0.1 %
    p[2].view(-1)[:10] = 1  # 1 %: neither
    assert model.region_classes(p).tolist() == [1, 0, -1]


def test_classes_of_cells_follow_coverage_in_z_y_x_order():
    grid = (2, 3, 4)
    p = torch.zeros(1, 8, 12, 16)  # cells of 4³ voxels
    p[0, 4:8, 0:4, 8:12] = 1  # cell (1, 0, 2)
    p[0, 0:4, 8:12, 12:14] = 1  # half of cell (0, 2, 3)
    p[0, 0, 4, 0] = 1  # 1.6 % of cell (0, 1, 0)
    classes = model.cell_classes(p, grid).reshape(grid)
    assert classes[1, 0, 2] == 1 and classes[0, 2, 3] == -1 and classes[0, 1, 0] == 0
    assert (classes == 0).sum() == 22


def test_coarse_loss_is_the_cross_entropy_of_the_sure_regions():
    module = model.CGC(6, grid=(1, 2, 2), embedding=4)
    features = torch.randn(3, 6, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    p = torch.zeros(3, 4, 8, 8)
    p[0, :, :, :4] = 1
    p[1].view(-1)[:2] = 1  # 0.8 %: ignored
    losses = module(features, p)
    logits = torch.stack([module.coarse(f.flatten(1).mean(1)) for f in features])
    expected = (-logits[0].log_softmax(0)[1] - logits[2].log_softmax(0)[0]) / 2
    torch.testing.assert_close(losses.coarse, expected)
    assert losses.fine > 0


def test_paths_can_be_turned_off():
    p = torch.zeros(2, 4, 4, 4)
    p[0, :, :, :2] = 1
    features = torch.randn(2, 6, 2, 2, 2, requires_grad=True)
    only_coarse, only_fine = model.CGC(6, (2, 2, 2), fine=False), model.CGC(6, (2, 2, 2), coarse=False)
    assert only_coarse(features, p).fine == 0 and only_coarse(features, p).coarse > 0
    assert only_fine(features, p).coarse == 0 and only_fine(features, p).fine > 0
    assert only_coarse.fine is None and only_fine.coarse is None


def test_embeddings_are_unit_vectors_on_any_grid():
    for grid in ((4, 6, 6), (4, 3, 3), (4, 12, 12)):
        cells = model.CGC(5, grid, embedding=7).embed(torch.randn(2, 5, 4, 6, 6))
        assert cells.shape == (2, math.prod(grid), 7)
        torch.testing.assert_close(cells.norm(dim=2), torch.ones(2, math.prod(grid)))


# --- backbone and inference ------------------------------------------------------------------------------


def test_paper_size_bottleneck_is_the_papers_grid():
    from papers.cgc.networks import build_model
    from papers.cgc.train import PROFILES, VARIANTS, Config
    from shared.cli import configure

    for variant, shape in {"full": (4, 6, 6), "grid3": (4, 6, 6), "grid12": (8, 12, 12)}.items():
        config = configure(Config, PROFILES, VARIANTS, "paper", variant, data=None, out=None)
        with torch.device("meta"):
            net = build_model(config, ("t1", "t1ce", "t2", "flair"))
            _, features = net.backbone(torch.empty(1, 4, *config.patch))
        assert features[net.level].shape[2:] == shape
        assert net.cgc.fine[0].in_channels == features[net.level].shape[1]


def test_segmentation_loss_is_half_cross_entropy_half_dice():
    logits = torch.randn(2, 2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.zeros(2, 2, 3, 4)
    mask[0, 0] = 1
    p = logits.float().softmax(1)
    cross_entropy, dice = 0.0, []
    for b in range(2):
        inside = p[b, 1][mask[b] == 1].sum()
        dice.append((2 * inside + 1) / (p[b, 1].sum() + mask[b].sum() + 1))
        for voxel in np.ndindex(2, 3, 4):
            cross_entropy -= p[b, int(mask[b][voxel])][voxel].log() / 48
    expected = 0.5 * cross_entropy + 0.5 * (1 - sum(dice) / 2)
    torch.testing.assert_close(model.segmentation_loss(logits, mask), expected)


def test_sliding_window_is_exact_for_a_pointwise_function():
    image = torch.randn(2, 11, 9, 13, generator=torch.Generator().manual_seed(0))
    for overlap in (0.0, 0.25, 0.5):
        found = inference.sliding_window(lambda x: x * 2 + 1, image, (4, 6, 5), overlap, batch=3)
        torch.testing.assert_close(found, image * 2 + 1)
    with pytest.raises(ValueError, match="smaller"):
        inference.sliding_window(lambda x: x, image, (12, 6, 5), 0.5)


def test_windows_without_overlap_are_blocks_and_overlapping_ones_are_weighted_by_distance():
    image = torch.arange(2 * 8 * 4 * 6, dtype=torch.float32).reshape(2, 8, 4, 6)
    found = inference.sliding_window(lambda x: x.mean((2, 3, 4), True) + 0 * x, image, (4, 4, 3), 0.0)
    for z, x in ((0, 0), (0, 3), (4, 0), (4, 3)):
        block = image[:, z : z + 4, :, x : x + 3].mean((1, 2, 3))
        torch.testing.assert_close(found[:, z : z + 4, :, x : x + 3], block[:, None, None, None].expand(2, 4, 4, 3))
    line = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])[None, :, None, None]  # windows 0:4 and 2:6, means 1/2 and 1
    found = inference.sliding_window(lambda x: x.mean((2, 3, 4), True) + 0 * x, line, (4, 1, 1), 0.5)[0, :, 0, 0]
    bell = [math.exp(-0.5 * d**2) for d in (-1.5, -0.5, 0.5, 1.5)]  # standard deviation a quarter of the window
    expected = (0.5 * bell[2] + 1.0 * bell[0]) / (bell[2] + bell[0])
    assert found[0] == 0.5 and found[5] == 1.0 and found[2].item() == pytest.approx(expected, rel=1e-5)


# --- the proposal ----------------------------------------------------------------------------------------


def test_lesion_component_is_the_brightest_of_plausible_size():
    rule = (0.003, 0.15)
    assert proposal.lesion_component(np.array([0.0, 3.0, 2.0]), np.array([0.9, 0.001, 0.099]), rule) == 2
    assert proposal.lesion_component(np.array([0.0, 3.0, 2.0]), np.array([0.5, 0.4, 0.1]), rule) == 2
    assert proposal.lesion_component(np.array([0.0, 3.0]), np.array([0.5, 0.5]), rule) == 1
    assert proposal.lesion_component(np.array([-1.0, 3.0]), np.array([0.1, 0.9]), rule) == 1  # a dark one is none


def test_clean_up_keeps_the_large_pieces():
    mask = np.zeros((20, 20, 20), bool)
    for corner, edge in (((1, 1, 1), 6), ((1, 12, 1), 5), ((12, 1, 1), 5), ((12, 12, 12), 4)):
        mask[tuple(slice(c, c + edge) for c in corner)] = True
    mask[9, 9, 9] = True
    brain = np.ones_like(mask)
    found = proposal.clean_up(mask, brain, proposal.ProposalRule(opening=0))
    expected = ndimage.median_filter(mask, 3, mode="constant")
    expected[12:17, 12:17, 12:17] = False  # the fourth largest
    np.testing.assert_array_equal(found, expected)
    large = proposal.clean_up(mask, brain, proposal.ProposalRule(opening=0, smallest=0.012))
    assert ndimage.label(large)[1] == 1
    assert not proposal.clean_up(np.zeros_like(mask), brain, proposal.ProposalRule()).any()


def test_mixture_recovers_a_known_one_and_posteriors_sum_to_one(volumes):
    case = volumes[0]
    rng = np.random.default_rng(0)
    brain = case.brain.numpy()
    image, truth = np.zeros_like(case.image.numpy()), np.zeros(brain.shape, int)
    truth[brain] = rng.choice(3, brain.sum(), p=[0.6, 0.3, 0.1])
    flair, t2 = case.modalities.index("flair"), case.modalities.index("t2")
    for channel, means in ((flair, (-1.0, 0.5, 3.0)), (t2, (0.0, 2.0, 1.0))):
        image[channel] = (np.array(means)[truth] + 0.1 * rng.normal(size=brain.shape)) * brain
    made = dataclasses.replace(case, image=torch.from_numpy(image))
    mixture = proposal.fit_mixture(made, proposal.ProposalRule(components=3, voxels=2000, restarts=2))
    np.testing.assert_allclose(np.sort(mixture.means[:, 0]), (-1.0, 0.5, 3.0), atol=0.05)
    np.testing.assert_allclose(mixture.posterior[:, brain].sum(0), 1, rtol=1e-4)
    assert mixture.means[mixture.lesion, 0] > 2.5
    np.testing.assert_array_equal(mixture.posterior[mixture.lesion] > 0.9, truth == 2)


QUICK = proposal.ProposalRule(voxels=1000, restarts=1)


def test_a_proposal_is_made_once_and_kept(volumes, kept, monkeypatch):
    case, fits = volumes[0], []
    fit = proposal.fit_mixture
    monkeypatch.setattr(proposal, "fit_mixture", lambda *args: fits.append(args) or fit(*args))
    first = proposal.gmm_proposal(case, QUICK)
    again = proposal.gmm_proposal(case, QUICK)
    assert len(fits) == 1 and torch.equal(first, again) and first.any()
    (path,) = kept.iterdir()
    for damage in (lambda: path.write_bytes(path.read_bytes()[:40]), lambda: np.save(path, np.zeros(3, np.uint8))):
        damage()
        assert torch.equal(proposal.gmm_proposal(case, QUICK), first)
    assert len(fits) == 3
    proposal.gmm_proposal(case, dataclasses.replace(QUICK, posterior=0.8))
    proposal.gmm_proposal(dataclasses.replace(case, image=case.image * 1.01), QUICK)
    proposal.gmm_proposal(case, dataclasses.replace(QUICK, median=1))
    assert len(fits) == 6 and len(list(kept.iterdir())) == 4  # another rule, another image: made anew


def test_a_proposal_is_made_where_none_can_be_kept(volumes, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert proposal.gmm_proposal(volumes[0], QUICK).any()


def test_the_proposal_is_the_same_in_all_trainings(root, tmp_path):
    """It depends on no training's seed; the seed of its own changes it."""
    from papers.cgc.train import proposals_of

    def proposals(**values):
        config = smoke_config("cgc", "full", root, tmp_path, **values)
        return proposals_of(config, data.Volumes(root, "train", config.test_fraction), "cpu")

    one = proposals(seed=0)
    assert all(map(torch.equal, one, proposals(seed=1)))
    assert not all(map(torch.equal, one, proposals(proposal_seed=1)))


def test_the_profiles_make_the_proposal_as_the_paper_profile_does():
    from papers.cgc.train import PROFILES, Config

    for profile in ("cpu", "study", "paper"):
        assert not [name for name in PROFILES[profile] if name.startswith(("gmm", "proposal", "posterior"))]
    assert Config.gmm_voxels == 50000 and Config.gmm_restarts == 5


@pytest.mark.parametrize("profile", ["cpu", "study", "paper"])
def test_the_clean_up_is_of_a_few_mm_at_most(profile):
    """In voxels it would be four times as strong at 4 mm as in the paper profile, and P a shrunken one."""
    from papers.cgc.train import PROFILES, VARIANTS, Config
    from shared.cli import configure

    mm = standin.SETTINGS[profile].voxel_mm
    for variant in ("gmm", "brightness", "mumford_shah", "full"):
        config = configure(Config, PROFILES, VARIANTS, profile, variant, data=None, out=None)
        rule = proposal.ProposalRule.of(config)
        assert (rule.median, rule.opening) == (config.median, config.opening)
        assert (rule.median - 1) * mm <= 2 and rule.opening * mm <= 1


def test_without_median_and_opening_a_large_piece_keeps_its_shape():
    mask = np.random.default_rng(0).random((12, 12, 12)) < 0.6  # one ragged piece, and dust
    pieces, count = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())[1:]
    assert count > 1 and (sizes > 1).sum() == 1
    found = proposal.clean_up(mask, np.ones_like(mask), proposal.ProposalRule(median=1, opening=0, smallest=0.01))
    np.testing.assert_array_equal(found, pieces == sizes.argmax() + 1)
    for even in (0, 2):
        with pytest.raises(InputError, match=f"--median {even}.*odd"):
            proposal.ProposalRule(median=even)


def test_proposals_of_the_users_own(root, tmp_path):
    config = smoke_config("cgc", "full", root, tmp_path / "run", proposal="files", proposal_files=tmp_path / "p")
    from papers.cgc import train

    with pytest.raises(InputError, match="nii.gz"):
        train.train(config)
    cases = data.Volumes(root, "train", config.test_fraction)
    for index, name in enumerate(cases.names):
        case = cases[index]
        mask = torch.zeros_like(case.brain)
        mask[5:10, 8:14, 3:9] = True
        nifti.save(tmp_path / "p" / f"{name}.nii.gz", case.uncrop(mask), like=case.original, dtype=np.uint8)
        torch.testing.assert_close(proposal.read_proposal(tmp_path / "p" / f"{name}.nii.gz", case), mask)
    train.train(config)
    assert (tmp_path / "run" / "checkpoint.pt").exists()


# --- Mumford-Shah, autoencoder ---------------------------------------------------------------------------


def test_mumford_shah_functional_against_loops():
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(2, 3, 2, 3, 4, generator=generator).softmax(1)
    image, brain = torch.randn(2, 2, 2, 3, 4, generator=generator), torch.ones(2, 2, 3, 4)
    brain[0, 0, 0, 0] = 0
    fit = 0.0
    for k in range(3):
        weight = u[:, k] * brain
        centre = torch.stack([(weight * image[:, c]).sum() / weight.sum() for c in range(2)])
        for place in np.ndindex(2, 2, 3, 4):
            fit += weight[place] * (image[place[0], :, place[1], place[2], place[3]] - centre).square().sum()
    expected = (fit + 0.3 * total_variation(u * brain[:, None])) / brain.sum()
    torch.testing.assert_close(mumford_shah_loss(u, image, brain, 0.3), expected)


def test_total_variation_of_a_box_is_its_surface_and_the_true_partition_is_best():
    box = torch.zeros(1, 1, 8, 8, 8)
    box[0, 0, 2:5, 2:6, 3:5] = 1
    assert total_variation(box) == 2 * (3 * 4 + 3 * 2 + 4 * 2)
    image = 5 * box + 0.01 * torch.randn(box.shape)
    brain = torch.ones(1, 8, 8, 8)
    right = torch.cat([box, 1 - box], 1)
    wrong = right.roll(1, dims=4)
    none = torch.full_like(right, 0.5)
    losses = [float(mumford_shah_loss(u, image, brain, 0.1)) for u in (right, wrong, none)]
    assert losses[0] < min(losses[1:])


def test_mumford_shah_functional_with_given_constants():
    torch.manual_seed(0)
    u, image = torch.rand(2, 3, 2, 3, 4).softmax(1), torch.randn(2, 2, 2, 3, 4)
    brain, means = (torch.rand(2, 2, 3, 4) > 0.3).float(), torch.randn(3, 2)
    expected = sum(
        u[b, k, z, y, x] * brain[b, z, y, x] * (image[b, :, z, y, x] - means[k]).square().sum()
        for b, k, z, y, x in np.ndindex(*u.shape)
    )
    torch.testing.assert_close(mumford_shah_loss(u, image, brain, 0.0, means), expected / brain.sum())


def test_mumford_shah_network_starts_as_the_pointwise_assignment():
    net = MumfordShahNet(3, (0, 2), segments=4, widths=(4, 8)).eval()
    net.means.copy_(torch.randn(4, 2))
    image = torch.randn(1, 3, 4, 4, 4)
    nearest = torch.cdist(image[0, [0, 2]].flatten(1).T, net.means).argmin(1)
    with torch.no_grad():
        assert (net(image)[0].argmax(0).flatten() == nearest).all()


def test_constants_of_the_functional_are_the_tissues(volumes):
    means = intensity_means((volumes[index] for index in range(len(volumes))), 3, 500, seed=0)
    again = intensity_means((volumes[index] for index in range(len(volumes))), 3, 500, seed=0)
    assert means.equal(again) and means.shape == (3, 2)
    values = torch.cat([volumes[i].image[[volumes[i].modalities.index(m) for m in ("flair", "t2")]][:, volumes[i].brain]
                        for i in range(len(volumes))], 1).T  # fmt: skip
    nearest = torch.cdist(values, means).argmin(1)
    for k in range(3):  # each constant is about the mean of the voxels that are nearest to it
        assert (values[nearest == k].mean(0) - means[k]).abs().max() < 0.15


def test_mumford_shah_takes_the_brightest_plausible_segment(volumes):
    case = volumes[0]
    truth = volumes.lesion(0) & case.brain
    segments = torch.stack([(~truth).float(), truth.float(), torch.zeros_like(truth).float()])
    rule = proposal.ProposalRule(opening=0)
    found = mumford_shah_proposal(segments, case, rule)
    assert found.any() and torch.equal(
        found, torch.from_numpy(proposal.clean_up(truth.numpy(), case.brain.numpy(), rule))
    )


def test_the_autoencoders_threshold_marks_the_wanted_share():
    residuals = [np.linspace(0, 1, 1000).reshape(10, 10, 10), np.linspace(1, 2, 1000).reshape(10, 10, 10)]
    brains = [np.ones((10, 10, 10), bool)] * 2
    threshold = threshold_without_labels(residuals, brains, 0.05)
    assert np.mean([r > threshold for r in residuals]) == pytest.approx(0.05, abs=0.001)


# --- data ------------------------------------------------------------------------------------------------


def test_split_depends_on_names_only():
    folders = [Path(f"anywhere/{name}") for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")]
    split = data.split_cases(folders, 0.2)
    other = data.split_cases([Path(f"elsewhere/{f.name}") for f in reversed(folders)], 0.2)
    assert len(split["test"]) == 2 and len(split["train"]) == 8
    assert {f.name for f in split["test"]} == {f.name for f in other["test"]}
    assert not set(split["test"]) & set(split["train"])


def test_volumes_are_normalised_cut_and_put_back(root):
    folder = data.find_cases(root)[0]
    case = data.read_case(data.image_files(folder), folder.name, least=(60, 1, 1))
    assert case.image.shape[1] == 60 and case.brain[0].any()
    for channel in case.image:
        inside = channel[case.brain]
        assert abs(float(inside.mean())) < 1e-4 and float(inside.std()) == pytest.approx(1, abs=1e-2)
        assert (channel[~case.brain] == 0).all()
    label = data.read_lesion(folder, case)
    written = case.uncrop(label)
    original = nifti.load(folder / f"{folder.name}_seg.nii.gz").data
    np.testing.assert_array_equal(written > 0, original > 0)


def test_a_lesion_on_the_patients_left_is_at_small_x(root):
    folder = data.find_cases(root)[0]
    case = data.read_case(data.image_files(folder), folder.name)
    label = nifti.load(folder / f"{folder.name}_seg.nii.gz")
    mean_voxel = np.argwhere(label.data > 0).mean(0)
    brain_voxel = np.argwhere(nifti.load(folder / f"{folder.name}_t1.nii.gz").data > 0).mean(0)
    to_right = (label.affine[:3, :3] @ (mean_voxel - brain_voxel))[0]
    found = np.argwhere(data.read_lesion(folder, case).numpy())[:, 2].mean()
    middle = np.argwhere(case.brain.numpy())[:, 2].mean()
    assert (found > middle) == (to_right > 0)


def make_ct(root: Path, name: str, seed: int, bone: bool = False) -> None:
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:24, :32, :32]
    inside = ((z - 12) / 10) ** 2 + ((y - 16) / 14) ** 2 + ((x - 16) / 13) ** 2 < 1
    blood = (z - 13) ** 2 + (y - 12) ** 2 + (x - 20) ** 2 < 16
    values = np.where(blood, 68, 32) + rng.normal(0, 3, inside.shape)
    volume = np.where(inside, np.clip(values, 5, 99), 0)
    if bone:
        volume[0] = 900
    for kind, array in (("ct", volume.astype(np.int16)), ("seg", (blood & inside).astype(np.uint8))):
        nifti.save(root / name / f"{kind}.nii.gz", array.transpose(2, 1, 0), affine=np.diag([4.0, 4.0, 5.0, 1]))


def test_head_ct_has_one_channel_and_blood_is_proposed(tmp_path):
    for seed, name in enumerate(("CQ1", "CQ2", "CQ3")):
        make_ct(tmp_path, name, seed)
    volumes = data.Volumes(tmp_path, "train", 0.34)
    assert volumes.modalities == ("ct",) and len(volumes) == 2
    case = volumes[0]
    assert case.image.shape[0] == 1 and case.spacing == (5.0, 4.0, 4.0)
    found = proposal.gmm_proposal(case, proposal.ProposalRule(voxels=3000, restarts=1))
    truth = volumes.lesion(0)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.7
    make_ct(tmp_path, "CQ0", 3, bone=True)
    with pytest.raises(InputError, match="ct.nii.gz.*bone"):
        data.read_case(data.image_files(tmp_path / "CQ0"), "CQ0")


def test_bad_volumes_are_named(root, tmp_path):
    shutil.copytree(root, tmp_path / "d")
    folder = data.find_cases(tmp_path / "d")[0]
    files = data.image_files(folder)
    image = nifti.load(files["t2"])
    nifti.save(files["t2"], image.data[:-1], affine=image.affine)
    with pytest.raises(InputError, match="_t2.nii.gz does not lie on the voxels"):
        data.read_case(files, folder.name)
    nifti.save(files["flair"], image.data + 1, like=image)
    with pytest.raises(InputError, match="_flair.nii.gz.*skull"):
        data.read_case({"flair": files["flair"]}, folder.name)
    files["t2"].unlink()
    with pytest.raises(InputError, match="modalities"):
        data.Volumes(tmp_path / "d", "train", 0.01)
    (folder / f"{folder.name}_seg.nii.gz").write_bytes(b"no label")
    good = data.find_cases(root)[0]
    with pytest.raises(InputError, match="_seg.nii.gz"):
        data.read_lesion(folder, data.read_case(data.image_files(good), good.name))


# --- gradient boosting -----------------------------------------------------------------------------------


def test_boosting_learns_a_proposal_from_what_lies_around_a_voxel(volumes):
    """P is where the mean over 3³ voxels of one channel is high: no single intensity tells it, and training does."""
    from papers.cgc.boosting import BoostedVoxels, features_around

    cases = list(volumes.cases())
    values = [features_around(case) for case in cases]
    channels = len(cases[0].image)
    assert values[0].shape == (int(cases[0].brain.sum()), 3 * channels)
    around = ndimage.uniform_filter(cases[0].image[1].numpy(), 3)[cases[0].brain.numpy()]
    np.testing.assert_array_equal(values[0][:, channels + 1], around)

    def mask_of(case, features):
        mask = torch.zeros_like(case.brain)
        mask[case.brain] = torch.from_numpy(features[:, channels + 1] > 0.8)
        return mask

    masks = [mask_of(case, features) for case, features in zip(cases, values)]
    boosting, again = (BoostedVoxels(channels, 3000) for _ in range(2))
    assert not boosting.probability(cases[-1]).any()  # nothing seen
    boosting.remember(cases[:-1], masks[:-1], seed=0)
    found = boosting.probability(cases[-1])
    assert not found[~cases[-1].brain].any() and 0 <= found.min() and found.max() <= 1
    wrong = ((found > 0.5) != masks[-1])[cases[-1].brain].float().mean()
    assert wrong < 0.3 * masks[-1][cases[-1].brain].float().mean()
    again.load_state_dict(boosting.state_dict())
    assert torch.equal(again.probability(cases[-1]), found)
    again.remember(cases[:-1], masks[:-1], seed=1)
    assert not torch.equal(again.probability(cases[-1]), found)


# --- regions ---------------------------------------------------------------------------------------------


def test_regions_hold_what_they_are_named_after():
    mask, brain = torch.zeros(24, 40, 40, dtype=torch.bool), torch.ones(24, 40, 40, dtype=torch.bool)
    mask[8:16, 10:20, 4:12] = True
    rule = regions.RegionRule((8, 12, 12))
    torch.manual_seed(0)
    for _ in range(20):
        start = regions.lesion_region(mask, brain, rule, rule.size)
        place = tuple(slice(s, s + n) for s, n in zip(start, rule.size))
        assert mask[place].float().mean() >= 0.02
        normal = regions.normal_region(mask, brain, rule, rule.size, start)
        assert normal == (start[0], start[1], 40 - start[2] - 12)  # the other hemisphere is free: its mirror image
        place = tuple(slice(s, s + n) for s, n in zip(normal, rule.size))
        assert mask[place].float().mean() <= 0.001
    mask[:] = True
    assert regions.normal_region(mask, brain, rule, rule.size, None) is not None


def test_the_mirror_plane_is_that_of_the_brain_not_of_the_padding():
    mask, brain = torch.zeros(8, 12, 40, dtype=torch.bool), torch.zeros(8, 12, 40, dtype=torch.bool)
    brain[:, :, :30] = True  # padded at the end
    mask[:, :, 2:8] = True
    rule = regions.RegionRule((8, 12, 8))
    assert regions.normal_region(mask, brain, rule, rule.size, (0, 0, 1)) == (0, 0, 30 - 1 - 8)


def test_a_normal_region_in_the_mirror_lesion_is_avoided():
    mask, brain = torch.zeros(16, 24, 48, dtype=torch.bool), torch.ones(16, 24, 48, dtype=torch.bool)
    mask[4:12, 6:18, 4:14] = True
    mask[4:12, 6:18, 34:44] = True
    rule = regions.RegionRule((8, 8, 8), tries=200)
    torch.manual_seed(0)
    start = regions.normal_region(mask, brain, rule, rule.size, (4, 8, 5))
    assert not mask[tuple(slice(s, s + 8) for s in start)].any()


def test_augmentation_moves_image_and_mask_together(volumes):
    masks = [volumes.lesion(index) for index in range(len(volumes))]
    rule = regions.RegionRule((8, 12, 12))
    marked = regions.RegionPairs(volumes, masks, rule, regions.Augmentation(scale=0.1, flip=True))
    for number, mask in enumerate(masks):  # an image that is the mask itself
        volumes._cache[number].image[:] = mask.float() * volumes._cache[number].brain
    torch.manual_seed(0)
    items = [marked[index] for index in range(len(marked)) for _ in range(5)]
    volumes._cache.clear()
    for item in items:
        image, mask = item["image"][0, 0], item["mask"][0] * item["brain"][0]
        assert item["image"].shape == (2, 4, 8, 12, 12) and item["mask"].shape == (2, 8, 12, 12)
        overlap = 2 * ((image > 0.5) & (mask > 0.5)).sum() / ((image > 0.5).sum() + (mask > 0.5).sum())
        assert overlap > 0.9


# --- no label is looked at -------------------------------------------------------------------------------

WITHOUT_LABELS = ["brightness", "boosting", "mumford_shah", "ae", "backbone", "full"]


def test_training_gives_the_same_weights_whatever_the_labels_are(root, tmp_path):
    from shared.checkpoints import load_checkpoint

    garbage = tmp_path / "garbage"
    shutil.copytree(root, garbage)
    labels = sorted(garbage.glob("*/*/*_seg.nii.gz"))
    assert len(labels) == len(data.find_cases(root))
    for path in labels:
        path.write_bytes(b"nobody reads this")
    for variant in WITHOUT_LABELS:
        contents = []
        for name, folder in (("labels", root), ("garbage", garbage)):
            train_variant("cgc", variant, folder, tmp_path / name / variant)
            contents.append(load_checkpoint(tmp_path / name / variant / "checkpoint.pt"))
        for a, b in zip(contents[0]["models"], contents[1]["models"]):
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), variant
    with pytest.raises(InputError, match="_seg.nii.gz"):
        train_variant("cgc", "supervised", garbage, tmp_path / "supervised")


def test_full_supervision_sees_the_same_regions_with_the_truth(root, volumes):
    truth = [volumes.lesion(index) for index in range(len(volumes))]
    proposals = [mask.roll(2, 0) for mask in truth]
    rule, augmentation = regions.RegionRule((8, 12, 12)), regions.Augmentation(0.1, 0.2, 0.1, True)
    items = []
    for targets in (None, truth):
        torch.manual_seed(0)
        pairs = regions.RegionPairs(volumes, proposals, rule, augmentation, targets)
        items.append([pairs[index] for index in range(len(pairs))])
    for one, other in zip(*items):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["brain"], other["brain"])
    assert any(not torch.equal(one["mask"], other["mask"]) for one, other in zip(*items))


def test_single_regions_lie_beside_the_proposal_or_anywhere(volumes):
    proposals = [volumes.lesion(index) for index in range(len(volumes))]
    marked = [mask.float() * 100 for mask in proposals]
    rule = regions.RegionRule((6, 8, 8), brain_coverage=0.3, tries=200)
    for index, mask in enumerate(marked):
        volumes[index].image[0] = mask
    torch.manual_seed(0)
    beside = regions.SingleRegions(volumes, proposals, rule, regions.Augmentation())
    assert all(beside[index]["region"][:, 0].max() == 0 for index in range(len(beside)) for _ in range(5))
    anywhere = regions.SingleRegions(volumes, None, rule, regions.Augmentation())
    items = [anywhere[index] for index in range(len(anywhere)) for _ in range(5)]
    volumes._cache.clear()
    assert max(float(item["region"].max()) for item in items) == 100
    assert items[0]["region"].shape == (2, 4, 6, 8, 8) and items[0]["inside"].shape == (2, 6, 8, 8)


def test_the_proposal_of_another_network_needs_its_checkpoint(root, tmp_path):
    train_variant("cgc", "backbone", root, tmp_path / "backbone")
    with pytest.raises(InputError, match="expected a checkpoint of mumford_shah"):
        train_variant("cgc", "full_ms", root, tmp_path / "ms", init=tmp_path / "backbone" / "checkpoint.pt")
    with pytest.raises(InputError, match="needs --init"):
        train_variant("cgc", "full_ms", root, tmp_path / "ms2")


# --- evaluation ------------------------------------------------------------------------------------------


def test_scores_are_in_mm_and_an_empty_mask_is_counted_apart():
    from papers.cgc.eval import score

    truth = torch.zeros(10, 10, 10, dtype=torch.bool)
    truth[2:8, 2:8, 2:8] = True
    shifted = truth.roll(1, 0)
    overlap, fine = score(shifted, truth, (1.0, 1.0, 1.0))
    _, coarse = score(shifted, truth, (3.0, 3.0, 3.0))
    assert coarse["assd"] == pytest.approx(3 * fine["assd"])
    assert overlap == {"dice": pytest.approx(5 / 6), "sensitivity": pytest.approx(5 / 6), "empty": 0.0}
    overlap, nothing = score(torch.zeros_like(truth), truth, (1.0, 2.0, 2.0))
    assert nothing is None and overlap == {"dice": 0.0, "sensitivity": 0.0, "empty": 1.0}


def test_a_case_with_nothing_found_has_no_surface(root, tmp_path, monkeypatch):
    from papers.cgc import eval as evaluation

    train_variant("cgc", "gmm", root, tmp_path / "run")
    segment, calls = evaluation.segment, []

    def nothing_at_first(*args):
        found = segment(*args)
        calls.append(found)
        return torch.zeros_like(found) if len(calls) == 1 else torch.ones_like(found)

    monkeypatch.setattr(evaluation, "segment", nothing_at_first)
    evaluation.evaluate(root, tmp_path / "run" / "checkpoint.pt", tmp_path / "out", "cpu")
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    names = data.Volumes(root, "test", 0.34).names
    assert list(rows) == [f"mask/{name}" for name in names] + [f"surface/{name}" for name in names[1:]]
    assert rows[f"mask/{names[0]}"]["empty"] == "1.0" and rows[f"mask/{names[0]}"]["assd"] == ""


def test_make_pseudo_and_embedding_pictures(root, tmp_path):
    from matplotlib.image import imread

    from papers.cgc import eval as evaluation

    flair = sorted(root.glob("*/*/*_flair.nii.gz"))[0]
    evaluation.make_pseudo(flair, tmp_path / "p.nii.gz", tmp_path / "components.png")
    mask, scan = nifti.load(tmp_path / "p.nii.gz"), nifti.load(flair)
    assert mask.shape == scan.shape and np.allclose(mask.affine, scan.affine) and set(np.unique(mask.data)) <= {0, 1}
    assert imread(tmp_path / "components.png").std() > 0.02
    train_variant("cgc", "full", root, tmp_path / "full")
    evaluation.embedding(root, tmp_path / "full" / "checkpoint.pt", tmp_path / "e.png", "cpu")
    assert imread(tmp_path / "e.png").std() > 0.02
    figure, probability = tmp_path / "own.png", tmp_path / "probability.nii.gz"
    checkpoint = tmp_path / "full" / "checkpoint.pt"
    evaluation.apply(checkpoint, flair, tmp_path / "own.nii.gz", probability, figure, "cpu")
    sister = Path(str(flair).replace("_flair", "_t2"))
    for output in (sister, flair):
        with pytest.raises(InputError, match="is the input itself"):
            evaluation.make_pseudo(flair, output)
        with pytest.raises(InputError, match="is the input itself"):
            evaluation.apply(checkpoint, flair, tmp_path / "other.nii.gz", output, device="cpu")
    with pytest.raises(InputError, match="outputs"):
        evaluation.apply(checkpoint, flair, probability, probability, device="cpu")
    found, likely = nifti.load(tmp_path / "own.nii.gz").data, nifti.load(probability).data
    assert ((likely > 0.5) >= (found > 0)).all() and figure.exists()


def test_a_scan_of_another_kind_is_refused(root, tmp_path):
    from papers.cgc import eval as evaluation

    train_variant("cgc", "backbone", root, tmp_path / "run")
    source = sorted(root.glob("*/*/*_flair.nii.gz"))[0]
    alone = tmp_path / "x_flair.nii.gz"
    shutil.copyfile(source, alone)
    with pytest.raises(InputError, match="4 modalities t1, t1ce, t2, flair"):
        evaluation.apply(tmp_path / "run" / "checkpoint.pt", alone, tmp_path / "out.nii.gz", device="cpu")
    for path in source.parent.glob("*.nii.gz"):
        image = nifti.load(path)
        nifti.save(tmp_path / "other" / path.name, image.data, affine=image.affine @ np.diag([0.5, 0.5, 0.5, 1]))
    with pytest.raises(InputError, match="resample"):
        evaluation.apply(
            tmp_path / "run" / "checkpoint.pt", tmp_path / "other" / source.name, tmp_path / "out.nii.gz", device="cpu"
        )
    assert not (tmp_path / "out.nii.gz").exists()


# --- the simulator ---------------------------------------------------------------------------------------


def test_signals_order_as_radiologists_know_them():
    s = {m: simulator.signal(simulator.RELAXATION, m) for m in simulator.MODALITIES}
    csf, grey, white = simulator.CSF, simulator.GREY, simulator.WHITE
    assert s["t1"][white] > s["t1"][grey] > s["t1"][csf]
    assert s["t2"][csf] > s["t2"][grey] > s["t2"][white]
    assert s["flair"][simulator.OEDEMA] > s["flair"][grey] > s["flair"][white] > s["flair"][csf]
    assert s["t1ce"][simulator.ENHANCING] > 1.5 * s["t1ce"][white] and s["t1ce"][white] < 1.2 * s["t1"][white]
    gliosis, oedema = s["flair"][simulator.GLIOSIS], s["flair"][simulator.OEDEMA]
    assert abs(gliosis / oedema - 1) < 0.25  # the confounder


def test_spin_echo_signal_in_its_limits():
    tissue = np.array([[100.0, 1e9, 0.7, 0.0]])  # relaxed long before the next pulse, no decay
    assert simulator.signal(tissue, "t2")[0] == pytest.approx(0.7, rel=1e-6)
    nulled = np.array([[2450 / np.log(2), 1e9, 1.0, 0.0]])  # the inversion time nulls T1 = TI / ln 2 for long TR
    assert simulator.signal(nulled, "flair")[0] == pytest.approx(np.exp(-9000 * np.log(2) / 2450), rel=1e-6)


def test_smooth_noise_has_its_wavelength():
    grid = simulator.Grid((64, 64, 64), 2.0)
    for wavelength in (20.0, 60.0):
        field = simulator.smooth_noise(np.random.default_rng(0), grid, wavelength)
        assert abs(field.mean()) < 1e-3 and field.std() == pytest.approx(1, abs=1e-3)
        lag = int(wavelength / 2)  # half a wavelength in mm is a quarter of it in voxels of 2 mm
        near = np.mean(field[1:] * field[:-1])
        far = np.mean(field[lag:] * field[:-lag])
        assert near > 0.8 and far < 0.3


def test_standin_is_deterministic_and_has_tumours(root, tmp_path):
    again = tmp_path / "again"
    standin.generate(again, seed=1, size="smoke")
    files = sorted(path.relative_to(root) for path in root.rglob("*.nii.gz"))
    assert len(files) == 30
    for name in files:
        assert (root / name).read_bytes() == (again / name).read_bytes()
    for path in root.glob("*/*/*_seg.nii.gz"):
        labels = nifti.load_labels(path, (0, 1, 2, 4)).data
        brain = nifti.load(str(path).replace("_seg", "_t1")).data > 0
        assert 0.005 < (labels > 0).sum() / brain.sum() < 0.15
        assert not (labels[~brain] > 0).mean() > 0.001
        assert ((labels == 4).any()) == ("HGG" in str(path))
    with pytest.raises(InputError, match="already"):
        standin.generate(root, size="smoke")


def test_lesions_that_are_no_tumour_lie_elsewhere_in_every_case():
    """Else the position alone would tell where a proposal errs, and all that is trained on it would learn the error."""
    grid, counts = simulator.Grid((40, 48, 40), 4.0), 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        brain = simulator.healthy_brain(rng, grid)
        counts = counts + (simulator.add_gliosis(rng, brain) > 0.3)
    assert counts.sum() > 100  # there are some
    assert counts.max() <= 3  # of 8
    often = counts >= 2
    assert often.sum() < 0.3 * (counts >= 1).sum()


@pytest.mark.parametrize("name", ["model", "autoencoder"])
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(f"papers.cgc.{name}")).failed == 0
