"""The brain simulator: its geometry is invertible and known, its anatomy and its contrasts are plausible."""

import numpy as np
import pytest

from benchmarks.standins import brain, mddpm

SHAPE, SPACING = (40, 48, 36), 4.0


@pytest.fixture(scope="module")
def subject():
    return brain.Brain.random(np.random.default_rng(5), age=50)


@pytest.fixture(scope="module")
def maps(subject):
    return brain.tissues(subject, SHAPE, SPACING)


def test_tissues_are_volume_fractions(maps):
    assert set(maps) == set(brain.TISSUES)
    total = sum(maps.values())
    assert all(volume.dtype == np.float32 and volume.min() >= 0 for volume in maps.values())
    assert total.max() <= 1 + 1e-5 and total[0, 0, 0] == 0
    inside = brain.brain_mask(maps)
    assert 1.1e6 < inside.sum() * SPACING**3 < 2.1e6  # mm^3
    assert np.median(total[inside]) > 0.99


def test_same_seed_same_subject(subject, maps):
    again = brain.Brain.random(np.random.default_rng(5), age=50)
    for name, volume in brain.tissues(again, SHAPE, SPACING).items():
        assert np.array_equal(volume, maps[name])
    other = brain.tissues(brain.Brain.random(np.random.default_rng(6), age=50), SHAPE, SPACING)
    assert np.abs(other["cortex"] - maps["cortex"]).mean() > 0.02


def test_warp_is_a_diffeomorphism_with_an_exact_inverse(subject):
    points = brain.grid_points(SHAPE, SPACING)
    mapped = brain.to_atlas(subject, points)
    assert np.abs(brain.from_atlas(subject, mapped) - points).max() < 0.02
    slopes = np.stack([np.stack(np.gradient(mapped[i], SPACING)) for i in range(3)])
    assert np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1))).min() > 0.2
    assert np.abs(mapped - points).max() > 3


def test_displacement_aligns_two_shapes_of_one_brain(subject):
    other = brain.same_anatomy(np.random.default_rng(9), subject)
    field = brain.displacement(subject, other, SHAPE, SPACING)
    points = brain.grid_points(SHAPE, SPACING)
    fixed, moving = brain.labels(subject, SHAPE, SPACING), brain.labels(other, SHAPE, SPACING)
    moved = brain.labels(other, SHAPE, SPACING, points=points + field)
    assert (moved == fixed).mean() > 0.999 > 0.95 > (moving == fixed)[fixed > 0].mean()
    itself = brain.displacement(subject, subject, SHAPE, SPACING)
    assert np.abs(itself).max() < 0.02


def test_structures_have_plausible_sizes_and_sides(subject):
    labels = brain.labels(subject, (80, 96, 72), 2.0)
    millilitres = np.bincount(labels.ravel(), minlength=20) * 8 / 1000
    assert set(np.unique(labels)) == set(brain.LABELS)
    for name, low, high in (
        ("ventricle_left", 3, 40), ("cortex_left", 200, 420), ("white_matter_left", 150, 350),
        ("thalamus_left", 3, 10), ("caudate_left", 1.5, 7), ("putamen_left", 2, 8), ("hippocampus_left", 1.5, 7),
        ("brainstem", 12, 45), ("cerebellum", 80, 190),
    ):  # fmt: skip
        number = next(key for key, value in brain.LABELS.items() if value == name)
        assert low < millilitres[number] < high, (name, millilitres[number])
        if name.endswith("left"):
            assert 0.5 < millilitres[number] / millilitres[number + 1] < 2, name
            x = brain.grid_points((80, 96, 72), 2.0)[0]
            assert x[labels == number].mean() < x[labels == number + 1].mean()


def test_age_widens_sulci_and_ventricles():
    volumes = {}
    for age in (25, 85):
        found = [brain.tissues(brain.Brain.random(np.random.default_rng(k), age=age), SHAPE, SPACING) for k in range(3)]
        volumes[age] = [sum(maps[name].sum() for maps in found) for name in ("csf", "ventricles", "cortex")]
    young, old = volumes[25], volumes[85]
    assert old[0] > 1.15 * young[0] and old[1] > 1.3 * young[1] and old[2] < young[2]


def test_contrasts():
    def of(tissue, sequence):
        return brain.signal(*brain.RELAXATION[tissue], sequence)

    assert of("white_matter", brain.T1W) > of("cortex", brain.T1W) > of("csf", brain.T1W)
    assert of("csf", brain.T2W) > of("cortex", brain.T2W) > of("white_matter", brain.T2W)
    assert of("csf", brain.FLAIR) < 0.02 * of("cortex", brain.FLAIR)
    long_repetition = brain.Sequence(tr_ms=1e9, te_ms=0.0)
    assert brain.signal(1000, 100, 0.7, long_repetition) == pytest.approx(0.7)
    assert brain.signal(1000, 100, 1, brain.Sequence(1e9, 0, ti_ms=1000 * np.log(2))) == pytest.approx(0, abs=1e-12)
    half = {"csf": np.full((2, 2, 2), 0.5, np.float32), "cortex": np.full((2, 2, 2), 0.5, np.float32)}
    mixed = brain.contrast(half, brain.RELAXATION, brain.T2W)
    np.testing.assert_allclose(mixed, (of("csf", brain.T2W) + of("cortex", brain.T2W)) / 2, rtol=1e-5)


def test_painting_replaces_what_was_there(maps):
    fraction = np.zeros(SHAPE, np.float32)
    fraction[20, 20, 20] = 0.25
    painted = brain.paint(maps, "lesion", fraction)
    np.testing.assert_allclose(sum(painted.values()), sum(maps.values()) * (1 - fraction) + fraction, atol=1e-6)


def test_noise_and_bias():
    rng = np.random.default_rng(0)
    air = brain.rician(rng, np.zeros((50, 50, 10), np.float32) + 1e-9, snr=1e9)
    assert air.max() < 1e-6
    flat = np.full((60, 60, 10), 100, np.float32)
    noisy = brain.rician(rng, flat, snr=20)
    assert noisy.std() == pytest.approx(5, rel=0.05) and noisy.mean() == pytest.approx(np.sqrt(100**2 + 5**2), rel=2e-3)
    field = brain.bias_field(rng, (30, 40, 20), 0.2)
    assert field.min() > 0 and field.mean() == pytest.approx(1, abs=1e-5) and 0.1 < field.std() < 0.35
    assert np.abs(np.diff(field, axis=0)).max() < 0.1


def test_lesions_lie_in_the_brain_and_look_different():
    setting = mddpm.SETTINGS["cpu"]
    for kind, least in (("tumour", 50), ("sclerosis", 5)):
        case = mddpm.make_case(np.random.default_rng(3), kind, setting)
        lesion, mask = case["seg"] > 0, case["mask"] > 0
        assert lesion.sum() >= least and (mask[lesion]).all() and (case["t2"][~mask] == 0).all()
        ring = mask & ~lesion
        assert case["t2"][lesion].mean() > 1.15 * np.median(case["t2"][ring])
    healthy = mddpm.make_case(np.random.default_rng(3), "healthy", setting)
    assert not healthy["seg"].any()
