"""CDI-Net's scanner: geometry, system matrix, projector, attenuation and ML-EM, each against a slow reference."""

import itertools
import math

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from papers.cdinet.geometry import PinholeGeometry
from papers.cdinet.mlem import ml_em
from papers.cdinet.projector import Projector, attenuation_factors
from papers.cdinet.system_matrix import load_system_matrix, pinhole_matrix, save_system_matrix
from shared.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")

GEOMETRY = PinholeGeometry.ge570c(image_shape=(12, 10, 8), voxel_mm=22.0, detector_shape=(8, 6))
X, Y, Z = GEOMETRY.image_shape
U, V, A = GEOMETRY.projection_shape


@pytest.fixture(scope="module")
def projector():
    return Projector.from_geometry(GEOMETRY)


@pytest.fixture(scope="module")
def dense():
    return torch.from_numpy(pinhole_matrix(GEOMETRY).toarray()).double()


def random_image(cases=2, seed=0):
    return torch.rand(cases, 1, X, Y, Z, generator=torch.Generator().manual_seed(seed))


def random_projections(cases=2, seed=0):
    return torch.rand(cases, 1, U, V, A, generator=torch.Generator().manual_seed(seed))


def as_rows(projections):
    """(B, 1, U, V, A) -> (B, A*U*V) by loops: the order that the projector documents."""
    rows = torch.zeros(len(projections), A * U * V, dtype=projections.dtype)
    for a, u, v in itertools.product(range(A), range(U), range(V)):
        rows[:, (a * U + u) * V + v] = projections[:, 0, u, v, a]
    return rows


# ---------------------------------------------------------------------------------------------- geometry


def test_nineteen_pinholes_on_a_cylinder_look_at_the_centre():
    positions, axes = np.array(GEOMETRY.pinhole_positions), np.array(GEOMETRY.pinhole_axes)
    assert positions.shape == (19, 3) and GEOMETRY.angles == 20
    np.testing.assert_allclose(np.hypot(positions[:, 0], positions[:, 1]), 220.0)
    np.testing.assert_allclose(np.cross(positions, axes), 0.0, atol=1e-9)  # the axis points at the centre
    assert (np.sum(positions * axes, axis=1) < 0).all()
    central = GEOMETRY.measured_angles
    assert len(central) == 9 and (positions[list(central), 2] == 0).all()
    assert positions[:, 0].mean() > 0 and positions[:, 1].mean() < 0  # left anterior, where the heart is
    assert GEOMETRY.measured_mask().sum() == 9


def test_geometry_survives_json(tmp_path):
    GEOMETRY.save(tmp_path / "geometry.json")
    assert PinholeGeometry.load(tmp_path / "geometry.json") == GEOMETRY
    (tmp_path / "geometry.json").write_text("{}")
    with pytest.raises(InputError, match="geometry.json"):
        PinholeGeometry.load(tmp_path / "geometry.json")


def test_a_point_in_the_centre_is_seen_in_the_middle_with_the_pinhole_formula():
    geometry = PinholeGeometry.ge570c((3, 3, 3), 0.5, (31, 31))
    column = pinhole_matrix(geometry)[:, 13].toarray().reshape(A, 31, 31)  # voxel (1, 1, 1)
    for angle in range(19):
        image = column[angle]
        assert np.unravel_index(image.argmax(), image.shape) == (15, 15)
        distance = math.dist(geometry.pinhole_positions[angle], (0, 0, 0))
        assert image.sum() == pytest.approx(5.1**2 / (16 * distance**2), rel=0.02)  # on the axis cos = 1
    assert column[19].sum() == 0


def test_sensitivity_off_axis_falls_with_the_cube_of_the_cosine():
    geometry = PinholeGeometry.ge570c((9, 1, 1), 10.0, (64, 64))
    anterior = 5 + 2  # 45 degrees right + 2 * 22.5 degrees: straight in front, so that x runs along the detector
    sums = pinhole_matrix(geometry)[anterior * 64 * 64 : (anterior + 1) * 64 * 64].sum(axis=0)
    cosine = 220.0 / np.hypot(220.0, (np.arange(9) - 4) * 10.0)
    np.testing.assert_allclose(np.asarray(sums).ravel() / sums.max(), cosine**3, rtol=5e-3)


def test_orientation_left_is_right_of_the_anterior_view_and_head_is_up(projector):
    anterior = 7
    for axis, voxel, towards in ((0, (9, 5, 4), "u"), (2, (6, 5, 6), "v")):
        image = torch.zeros(1, 1, X, Y, Z)
        image[(0, 0, *voxel)] = 1.0
        view = projector.forward_project(image)[0, 0, :, :, anterior]
        profile = view.sum(dim=1 if towards == "u" else 0)
        centre = (profile * torch.arange(len(profile))).sum() / profile.sum()
        assert centre > (len(profile) - 1) / 2 + 0.5, axis


# ----------------------------------------------------------------------------------------- system matrix


@pytest.mark.parametrize("version", ["v5", "v7.3", "npz"])
def test_system_matrix_files(tmp_path, version):
    matrix = pinhole_matrix(GEOMETRY)
    if version == "npz":
        path = tmp_path / "sm.npz"
        scipy.sparse.save_npz(path, matrix)
    elif version == "v7.3":
        path = tmp_path / "sm.mat"
        save_system_matrix(path, matrix, GEOMETRY)
    else:  # written by hand: MATLAB's linear index has the first axis fastest, and the image is turned and flipped
        path = tmp_path / "sm.mat"
        tensor = matrix.toarray().reshape(A, U, V, X, Y, Z)[..., ::-1, ::-1, ::-1]
        by_matlab = tensor.transpose(0, 2, 1, 5, 4, 3).reshape(A * V * U, Z * Y * X)
        scipy.io.savemat(path, {"sm": scipy.sparse.csc_matrix(by_matlab.astype(np.float64))})
    loaded = load_system_matrix(path, GEOMETRY)
    assert loaded.dtype == np.float32 and abs(loaded - matrix).max() == 0
    other = PinholeGeometry.ge570c((12, 10, 8), 22.0, (8, 8))
    with pytest.raises(InputError, match=r"sm\.(mat|npz)"):
        load_system_matrix(path, other)


def test_broken_system_matrices(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_system_matrix(tmp_path / "sm.mat", GEOMETRY)
    (tmp_path / "sm.mat").write_bytes(b"not a matrix")
    with pytest.raises(InputError, match="system matrix"):
        load_system_matrix(tmp_path / "sm.mat", GEOMETRY)
    scipy.io.savemat(tmp_path / "other.mat", {"A": np.eye(3)})
    with pytest.raises(InputError, match="no sparse variable sm"):
        load_system_matrix(tmp_path / "other.mat", GEOMETRY)


# ---------------------------------------------------------------------------------------- T_f and T_b (M2)


def test_projector_is_the_dense_matrix_in_the_documented_order(projector, dense):
    image, projections = random_image(), random_projections()
    expected = image.double().flatten(1) @ dense.T
    torch.testing.assert_close(as_rows(projector.forward_project(image)).double(), expected, rtol=1e-5, atol=1e-9)
    expected = as_rows(projections).double() @ dense
    back = projector.back_project(projections)
    torch.testing.assert_close(back.flatten(1).double(), expected, rtol=1e-5, atol=1e-9)
    assert projector.forward_project(image)[..., 19].abs().max() == 0  # the padding angle


def test_adjoint_identity(projector):
    image, projections = random_image(), random_projections()
    left = (projector.forward_project(image).double() * projections).sum()
    right = (image.double() * projector.back_project(projections)).sum()
    assert abs(left - right) / abs(left) < 1e-5


def test_gradients_are_the_transposes(projector):
    image, projections = random_image().requires_grad_(), random_projections().requires_grad_()
    (gradient,) = torch.autograd.grad(projector.forward_project(image), image, projections)
    torch.testing.assert_close(gradient, projector.back_project(projections))
    (gradient,) = torch.autograd.grad(projector.back_project(projections), projections, image)
    torch.testing.assert_close(gradient, projector.forward_project(image))


def test_projector_keeps_float32_under_autocast_and_out_of_the_state_dict(projector):
    image = random_image()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projected = projector.forward_project(image.bfloat16())
    assert projected.dtype == torch.float32
    torch.testing.assert_close(projected, projector.forward_project(image.bfloat16().float()))
    assert not projector.state_dict()


def test_wrong_shapes_are_the_users_mistake(projector):
    with pytest.raises(InputError, match="image"):
        projector.forward_project(torch.zeros(1, 1, Y, X, Z))
    with pytest.raises(InputError, match="projections"):
        projector.back_project(torch.zeros(1, 1, A, U, V))
    with pytest.raises(InputError, match="matrix"):
        Projector(scipy.sparse.csr_matrix((3, 3)), GEOMETRY)


# -------------------------------------------------------------------------------------------- attenuation


def test_attenuation_through_a_uniform_block_is_exponential_in_the_path():
    factors = attenuation_factors(torch.full((1, 1, X, Y, Z), 0.15), GEOMETRY)[0]
    half = np.array(GEOMETRY.image_shape) * GEOMETRY.voxel_mm / 2
    centres = GEOMETRY.voxel_centres()
    for angle, voxel in [(7, 0), (7, 500), (2, 333), (16, 77), (12, 959)]:
        start, end = centres[voxel].astype(float), np.array(GEOMETRY.pinhole_positions[angle])
        fractions = np.linspace(0, 1, 200_001)
        inside = (np.abs(start + fractions[:, None] * (end - start)) <= half).all(axis=1).mean()
        path_cm = inside * np.linalg.norm(end - start) / 10
        assert factors[angle, voxel].item() == pytest.approx(math.exp(-0.15 * path_cm), rel=1e-3)
    assert (factors[19] == 1).all()


def test_attenuation_through_a_cylinder_converges_to_the_chord():
    geometry = PinholeGeometry.ge570c((48, 48, 3), 5.0, (8, 8))
    centres = geometry.voxel_centres().reshape(48, 48, 3, 3)
    radius = 80.0
    inside = np.clip(0.5 - (np.hypot(centres[..., 0], centres[..., 1]) - radius) / 5.0, 0, 1)
    mu = torch.from_numpy(0.15 * inside).float()[None, None]
    factors = attenuation_factors(mu, geometry, samples=80).reshape(1, A, 48, 48, 3)[0, :, 24, 24, 1]
    start = centres[24, 24, 1].astype(float)
    for angle in range(5, 14):  # pinholes in the plane z = 0
        direction = np.array(geometry.pinhole_positions[angle]) - start
        direction /= np.linalg.norm(direction)
        b = start[:2] @ direction[:2]
        chord_mm = -b + math.sqrt(b**2 + radius**2 - start[:2] @ start[:2])
        assert factors[angle].item() == pytest.approx(math.exp(-0.15 * chord_mm / 10), rel=0.01)


def test_attenuated_projector_is_the_dense_matrix_times_the_factors(projector, dense):
    mu, image, projections = 0.2 * random_image(seed=1), random_image(), random_projections()
    attenuated = projector.with_attenuation(mu)
    forward, back = attenuated.forward_project(image), attenuated.back_project(projections)
    for case in range(2):
        factors = attenuation_factors(mu[case : case + 1], GEOMETRY)[0].double()  # (A, voxels)
        matrix = dense * factors.repeat_interleave(U * V, dim=0)
        expected = matrix @ image[case].double().flatten()
        torch.testing.assert_close(as_rows(forward)[case].double(), expected, rtol=1e-5, atol=1e-9)
        expected = as_rows(projections)[case].double() @ matrix
        torch.testing.assert_close(back[case].flatten().double(), expected, rtol=1e-5, atol=1e-9)


# ------------------------------------------------------------------------------------------ ML-EM (M1, M10)


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("attenuated", [False, True])
def test_ml_em_is_the_textbook_loop(projector, dense, limited, attenuated):
    mu = 0.2 * random_image(seed=1)
    counts = projector.forward_project(random_image()) * 1e5
    mask = GEOMETRY.measured_mask() if limited else None
    result = ml_em(projector, counts, iterations=4, mu=mu if attenuated else None, angles_mask=mask)
    for case in range(2):
        matrix = dense
        if attenuated:
            factors = attenuation_factors(mu[case : case + 1], GEOMETRY)[0].double()
            matrix = dense * factors.repeat_interleave(U * V, dim=0)
        rows = slice(5 * U * V, 14 * U * V) if limited else slice(0, 19 * U * V)
        matrix, measured = matrix[rows], as_rows(counts)[case, rows].double()
        sensitivity = matrix.sum(dim=0)
        image = (sensitivity > 0).double()
        for _ in range(4):
            ratio = torch.nan_to_num(measured / (matrix @ image))
            image = torch.nan_to_num(image / sensitivity * (matrix.T @ ratio))
        torch.testing.assert_close(result[case].flatten().double(), image, rtol=1e-3, atol=1e-3 * image.mean().item())


def test_ml_em_keeps_counts_and_is_not_negative(projector):
    counts = torch.poisson(projector.forward_project(random_image()) * 1e5)
    for mask in (None, GEOMETRY.measured_mask()):
        measured = counts if mask is None else counts * mask
        seen = projector.forward_project(torch.ones(2, 1, X, Y, Z)) > 0
        image = None
        for _ in range(5):  # after every update
            image = ml_em(projector, counts, iterations=1, angles_mask=mask, initial=image)
            expected = projector.forward_project(image) * (1 if mask is None else mask)
            torch.testing.assert_close(
                expected.sum((1, 2, 3, 4)), (measured * seen).sum((1, 2, 3, 4)), rtol=1e-5, atol=0
            )
            assert image.min() >= 0 and torch.isfinite(image).all()


def test_ml_em_puts_the_heart_where_it_is():
    geometry = PinholeGeometry.ge570c((28, 28, 16), 10.0, (16, 16))
    projector = Projector.from_geometry(geometry)
    truth = torch.full((1, 1, 28, 28, 16), 0.02)
    truth[0, 0, 17:20, 9:12, 6:8] = 1.0
    image = ml_em(projector, projector.forward_project(truth))[0, 0]
    peak = np.unravel_index(image[8:24, 6:20, 3:13].argmax(), (16, 14, 10))
    assert 17 <= peak[0] + 8 < 20 and 9 <= peak[1] + 6 < 12 and 6 <= peak[2] + 3 < 8
    assert image[17:20, 9:12, 6:8].mean() > 0.6


def test_ml_em_of_nothing_is_nothing_and_bad_counts_are_refused(projector):
    zeros = torch.zeros(1, 1, U, V, A)
    assert ml_em(projector, zeros).abs().max() == 0
    for value in (-1.0, float("nan")):
        with pytest.raises(InputError, match="not negative"):
            ml_em(projector, zeros + value)
