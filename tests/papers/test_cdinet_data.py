"""CDI-Net's data: the published layout, broken files, the stand-in and a user's own projections."""

import math

import h5py
import numpy as np
import pytest
import torch

from benchmarks.standins import cdinet as standin
from benchmarks.standins import emission
from benchmarks.standins.torso import LABELS, Torso
from papers.cdinet import data
from papers.cdinet.geometry import PinholeGeometry
from papers.cdinet.mlem import ml_em
from papers.cdinet.projector import Projector
from shared.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")

GEOMETRY = PinholeGeometry.ge570c(image_shape=(12, 10, 8), voxel_mm=22.0, detector_shape=(8, 6))
X, Y, Z = GEOMETRY.image_shape
U, V, A = GEOMETRY.projection_shape


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return standin.generate(tmp_path_factory.mktemp("standin") / "cdinet", seed=3, size="smoke")


# ------------------------------------------------------------------------------------------------- data


def test_layout_round_trip_with_matlabs_axis_order(tmp_path):
    generator = np.random.default_rng(0)
    full = generator.poisson(50, GEOMETRY.projection_shape).astype(np.float32)
    mask = emission.limited_angle_mask(GEOMETRY)
    study = {"mu": generator.random(GEOMETRY.image_shape, dtype=np.float32), "projections_full": full}
    study |= {"image_low": generator.random(GEOMETRY.image_shape, dtype=np.float32)}
    study |= {"projections_low": full * mask, "mask": mask}
    data.write_study(tmp_path / "study.h5", study)
    with h5py.File(tmp_path / "study.h5") as file:
        assert file["Amap"].shape == (Z, Y, X) and file["Proj_FD_FA_EM"].shape == (A, V, U)
        assert file["Amap"][1, 2, 3] == study["mu"][3, 2, 1]
    read = data.read_study(tmp_path / "study.h5", GEOMETRY)
    assert read.keys() == study.keys()
    for name in study:
        np.testing.assert_array_equal(read[name], study[name])


def test_data_set_items(smoke):
    projector = data.load_projector(smoke)
    dataset = data.CardiacSpectDataset(smoke, "train", projector)
    item = dataset[0]
    assert len(dataset) == 4 and item["case"] == "study000"
    assert item["mu"].shape == (1, 12, 12, 8) and item["projections_low"].shape == (1, 8, 8, 20)
    assert torch.equal(dataset[0]["mu"], item["mu"])
    # I_L is recomputed from P_L where the file lacks it.
    counts, mask = item["projections_low"][None], item["mask"][None]
    torch.testing.assert_close(ml_em(projector, counts, angles_mask=mask)[0], item["image_low"], rtol=1e-3, atol=1.0)


def test_missing_image_geometry_and_matrix_are_replaced(smoke, tmp_path):
    (tmp_path / "train").mkdir()
    with (
        h5py.File(smoke / "train" / "study000.h5") as source,
        h5py.File(tmp_path / "train" / "a.h5", "w") as target,
    ):
        for key in set(source) - {"Recon_LD_LA_EM"}:
            source.copy(key, target)
    with pytest.warns(UserWarning, match="geometry.json|system matrix"):
        projector = data.load_projector(tmp_path)
    item = data.CardiacSpectDataset(tmp_path, "train", projector)[0]
    assert item["image_low"].shape == (1, 12, 12, 8) and item["image_low"].sum() > 0


def break_study(path, key, change):
    with h5py.File(path, "r+") as file:
        array = file[key][()]
        del file[key]
        if change is not None:
            file[key] = change(array)


def with_value(value):
    def change(array):
        array[0, 0, 0] = value
        return array

    return change


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("Amap", None, "no array .Amap"),
        ("Amap", lambda a: a.T, "expected"),
        ("Proj_FD_FA_EM", with_value(np.nan), "NaN"),
        ("Proj_LD_LA_EM", with_value(-1), "values from 0"),
        ("Mask_Proj", with_value(0.5), "1 where measured"),
        ("Proj_LD_LA_EM", lambda a: a * 0.1, "low-dose scale"),
    ],
)
def test_broken_studies(smoke, tmp_path, key, change, message):
    path = tmp_path / "study.h5"
    path.write_bytes((smoke / "test" / "study000.h5").read_bytes())
    break_study(path, key, change)
    with pytest.raises(InputError, match=message) as error:
        data.read_study(path, data.load_projector(smoke).geometry)
    assert "study.h5" in str(error.value)


def test_missing_and_truncated_files(smoke, tmp_path):
    projector = data.load_projector(smoke)
    with pytest.raises(InputError, match="doesn't exist"):
        data.CardiacSpectDataset(tmp_path / "nowhere", "train", projector)
    with pytest.raises(InputError, match="empty"):
        data.CardiacSpectDataset(tmp_path, "train", projector)
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match="train/"):
        data.CardiacSpectDataset(tmp_path, "train", projector)
    with pytest.raises(InputError, match="no .h5"):
        data.CardiacSpectDataset(tmp_path, "test", projector)
    whole = (smoke / "test" / "study000.h5").read_bytes()
    (tmp_path / "test" / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cut.h5"):
        data.CardiacSpectDataset(tmp_path, "test", projector)[0]


# ---------------------------------------------------------------------------------------------- stand-in


def test_low_dose_is_thinned_from_the_very_counts_of_the_full_dose(smoke):
    projector = data.load_projector(smoke)
    for item in data.CardiacSpectDataset(smoke, "train", projector):
        full, low, mask = (item[k].double() for k in ("projections_full", "projections_low", "mask"))
        kept = low * 0.1
        torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-3)
        assert (kept.round() <= full).all() and (low * (1 - mask)).sum() == 0
        measured = (full * mask).sum()
        assert 1.9e6 < full.sum() < 4.1e6
        assert abs(kept.sum() - 0.1 * measured) < 5 * math.sqrt(0.09 * measured)  # binomial


def test_binomial_thinning_statistics():
    counts = np.full(200_000, 80)
    kept = emission.thin(counts, 0.1, np.random.default_rng(0))
    assert kept.mean() == pytest.approx(8.0, abs=0.05) and (kept <= counts).all()
    assert kept.var() == pytest.approx(80 * 0.1 * 0.9, rel=0.02)
    poisson, scale = emission.poisson_counts(np.full(100_000, 2.0), 5e6, np.random.default_rng(0))
    assert scale == pytest.approx(25.0) and poisson.mean() == pytest.approx(50, rel=0.01)
    kept = emission.thin(poisson, 0.1, np.random.default_rng(1))
    assert kept.var() == pytest.approx(kept.mean(), rel=0.03)  # a thinned Poisson variable is Poisson
    assert np.corrcoef(kept, poisson)[0, 1] == pytest.approx(math.sqrt(0.1), abs=0.02)  # of the same counts


def test_expected_counts_agree_with_the_attenuated_projector():
    geometry = PinholeGeometry.ge570c((14, 14, 8), 20.0, (8, 8))
    torso = Torso.random(np.random.default_rng(0))
    anatomy = torso.render((28, 28, 16), 10.0, torso.heart_centre)
    mu = torch.nn.functional.avg_pool3d(torch.from_numpy(anatomy.mu_map)[None, None], 2)
    activity = torch.from_numpy(anatomy.activity)[None, None]
    fine = emission.expected_counts(activity, mu, geometry)
    coarse = Projector.from_geometry(geometry).with_attenuation(mu)
    coarse = coarse.forward_project(8 * torch.nn.functional.avg_pool3d(activity, 2))
    difference = ((fine - coarse) ** 2).sum() / (coarse**2).sum()
    assert 1e-6 < difference < 0.01  # near, but no inverse crime


def test_torso_anatomy():
    for seed in range(5):
        torso = Torso.random(np.random.default_rng(seed))
        assert torso == Torso.random(np.random.default_rng(seed))
        anatomy = torso.render((64, 56, 40), 5.0, torso.heart_centre)
        place = {
            name: np.argwhere(anatomy.labels == label).mean(axis=0)
            for name, label in LABELS.items()
            if (anatomy.labels == label).any()
        }
        middle = np.array([31.5, 27.5, 19.5])
        assert np.abs(place["myocardium"] - middle).max() < 6  # the heart is in the centre of the view
        assert place["liver"][0] < place["myocardium"][0] - 5  # to the right
        assert place["liver"][2] < place["myocardium"][2] - 4  # and below
        assert place["spine"][1] > place["myocardium"][1] + 10  # behind
        assert place["sternum"][1] < place["spine"][1]
        wall = anatomy.activity[anatomy.labels == LABELS["myocardium"]]
        assert 0.8 < np.median(wall) < 1.1
        assert anatomy.mu_map.min() >= 0 and anatomy.mu_map.max() <= 0.26
        assert 0.03 < np.median(anatomy.mu_map[anatomy.labels == LABELS["lung"]]) < 0.06
        floor = np.argwhere(anatomy.labels == LABELS["myocardium"])[:, 2].min()
        assert abs(np.argwhere(anatomy.labels == LABELS["liver"])[:, 2].max() - floor) * 5 <= 40  # they touch


def test_stand_in_is_deterministic_and_atomic(smoke, tmp_path):
    again = standin.generate(tmp_path / "again", seed=3, size="smoke")
    other = standin.generate(tmp_path / "other", seed=4, size="smoke")
    geometry = data.load_projector(again).geometry
    first, second, third = (data.read_study(root / "test" / "study001.h5", geometry) for root in (smoke, again, other))
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert (first["mu"] != third["mu"]).any()
    assert not list(tmp_path.glob(".*"))  # no unfinished folder left
    with pytest.raises(InputError, match="there already"):
        standin.generate(again, seed=3, size="smoke")
    with pytest.raises(InputError, match="size"):
        standin.generate(tmp_path / "x", size="huge")


# --------------------------------------------------------------------------------------- a user's files


def test_affine_is_ras_and_centred():
    geometry = PinholeGeometry.ge570c((12, 12, 8), 24.0, (8, 8))
    world = np.c_[np.argwhere(np.ones((12, 12, 8))), np.ones(12 * 12 * 8)] @ geometry.affine().T
    lps = geometry.voxel_centres()
    np.testing.assert_allclose(world[:, :3], lps * [-1, -1, 1], atol=1e-4)


def test_own_projections_as_h5_and_nifti(tmp_path):
    from shared import nifti

    geometry = PinholeGeometry.ge570c((12, 12, 8), 24.0, (8, 8))
    counts = np.random.default_rng(0).poisson(5.0, (8, 8, 20)).astype(np.float32)
    data.write_study(tmp_path / "a.h5", {"projections_low": counts})
    nifti.save(tmp_path / "a.nii.gz", counts[:, :, :19], affine=np.eye(4))  # without the padding angle
    np.testing.assert_array_equal(data.read_projections(tmp_path / "a.h5", geometry), counts)
    read = data.read_projections(tmp_path / "a.nii.gz", geometry)
    np.testing.assert_array_equal(read[:, :, :19], counts[:, :, :19])
    assert read.shape == (8, 8, 20) and not read[:, :, 19].any()


@pytest.mark.parametrize("counts, message", [
    (np.zeros((8, 8, 7)), "the counts are"), (np.full((8, 8, 20), -1.0), "values from 0"),
])  # fmt: skip
def test_own_projections_that_can_not_be(tmp_path, counts, message):
    geometry = PinholeGeometry.ge570c((12, 12, 8), 24.0, (8, 8))
    data.write_study(tmp_path / "mine.h5", {"projections_low": counts})
    with pytest.raises(InputError, match=f"mine.h5.*{message}"):
        data.read_projections(tmp_path / "mine.h5", geometry)
    with pytest.raises(InputError, match="no geometry.json"):
        data.load_scanner(tmp_path / "mine.h5")
