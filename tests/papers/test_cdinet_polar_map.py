"""The polar map of CDI-Net's emission images on shells and torsos whose pose and defects are known."""

import doctest
import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.standins.torso import Torso
from papers.cdinet import polar_map as module
from papers.cdinet import ventricle
from papers.cdinet.polar_map import SEGMENTS, draw_polar_map, polar_map, segment_index, segment_means, short_axis
from papers.cdinet.ventricle import LeftVentriclePose, left_ventricle_pose
from shared.errors import InputError

LEFT_ANTERIOR_DOWN = (1.0, -1.0, -0.6)  # how a heart usually points
WALL_MM = 11.0
# Written out, not taken from the module: the middle of segments 1 to 16, degrees from anterior over septal.
DEGREES = [0, 60, 120, 180, 240, 300] * 2 + [0, 90, 180, 270]


def make_pose(axis=LEFT_ANTERIOR_DOWN, centre=(3.0, -4.0, 2.0), **changes) -> LeftVentriclePose:
    return LeftVentriclePose(centre, axis, **({"length_mm": 44.0, "radius_mm": 26.0, "base_mm": 20.0} | changes))


def shell(pose: LeftVentriclePose, voxel_mm=4.0, shape=None, cold=None, background=0.1) -> np.ndarray:
    """(X, Y, Z): a wall of 1 around the pose's ellipsoid; `cold(along, degrees)` True is a defect of 0.2.

    `along` runs from 0 at the tip of the cavity to 1 at the basal plane, degrees from anterior over septal.
    Rendered at half the voxel and averaged, so that edges are as soft as a scanner's voxels.
    """
    shape = shape or (round(140 / voxel_mm),) * 3
    fine = [(np.arange(2 * n) - n + 0.5) * voxel_mm / 2 for n in shape]
    points = np.stack(np.meshgrid(*fine, indexing="ij"), axis=-1) - np.array(pose.centre)
    long, up, septal = (points @ np.array(v) for v in (pose.axis, pose.anterior, pose.septal))
    across = np.hypot(up, septal)

    def inside(half_wall):
        return (long / (pose.length_mm + half_wall)) ** 2 + (across / (pose.radius_mm + half_wall)) ** 2 < 1

    wall = inside(WALL_MM / 2) & ~inside(-WALL_MM / 2) & (long > -pose.base_mm)
    image = np.where(wall, 1.0, background)
    if cold is not None:
        tip = pose.length_mm - WALL_MM / 2
        along = (tip - long) / (tip + pose.base_mm)
        image[wall & cold(along, np.degrees(np.arctan2(septal, up)) % 360)] = 0.2
    x, y, z = shape
    return image.reshape(x, 2, y, 2, z, 2).mean(axis=(1, 3, 5)).astype(np.float32)


def degrees_between(a, b) -> float:
    return math.degrees(math.acos(np.clip(np.dot(a, b), -1.0, 1.0)))


def apex_of(torso: Torso) -> tuple[float, float, float]:
    """The direction of the simulated heart's long axis, from its azimuth and descent."""
    level = math.cos(torso.descent)
    return math.sin(torso.azimuth) * level, -math.cos(torso.azimuth) * level, -math.sin(torso.descent)


def rotation(rng) -> np.ndarray:
    """A random rotation matrix (3, 3)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def wall_of(degrees, centre, half_width):
    return np.abs((degrees - centre + 180) % 360 - 180) < half_width


# --------------------------------------------------------------------------------------------- segments


def test_segments_cover_the_map_exactly_once():
    segment = segment_index(24, 72)
    assert segment.shape == (24, 72)
    assert sorted(set(segment.ravel())) == list(range(1, 18))
    bins = np.bincount(segment.ravel(), minlength=18)[1:]
    assert bins.sum() == segment.size
    assert bins.tolist() == [6 * 12] * 12 + [6 * 18] * 4 + [6 * 72]  # 60°, 90°, and the whole cap
    polar = np.random.default_rng(0).random((24, 72))
    assert math.isclose((segment_means(polar) * bins).sum(), polar.sum())


def test_segments_lie_where_the_aha_puts_them():
    segment = segment_index(24, 72)
    for number, degrees in enumerate(DEGREES, start=1):
        ring = {0: 18, 1: 12, 2: 6}[(number - 1) // 6]  # the first of its six
        expected = np.zeros((24, 72), dtype=bool)
        expected[ring : ring + 6] = wall_of(np.arange(72) * 5 + 2.5, degrees, 30 if number <= 12 else 45)
        assert np.array_equal(segment == number, expected), SEGMENTS[number - 1]
    assert (segment[:6] == 17).all()
    assert [name.split()[-1] for name in SEGMENTS[:6]] == [
        "anterior", "anteroseptal", "inferoseptal", "inferior", "inferolateral", "anterolateral",
    ]  # fmt: skip
    for number, name in enumerate(SEGMENTS[:16], start=1):  # the name says the same as the place
        degrees = DEGREES[number - 1]
        height, side = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        assert ("anter" in name.split()[1]) == (height > 0.1)
        assert ("infer" in name.split()[1]) == (height < -0.1)
        assert ("sept" in name.split()[1]) == (side > 0.1)
        assert ("lateral" in name.split()[1]) == (side < -0.1)


def test_segment_means_of_a_constant_map():
    assert np.allclose(segment_means(np.full((8, 24), 3.5)), 3.5)
    assert segment_means(np.ones((8, 24))).shape == (17,)


@pytest.mark.parametrize("number", range(1, 18))
def test_segment_means_pick_the_bins_of_one_segment(number):
    means = segment_means(segment_index() == number)
    assert np.array_equal(means, np.arange(1, 18) == number)


@pytest.mark.parametrize("rings, angles", [(0, 72), (10, 72), (24, 0), (24, 40)])
def test_bins_that_would_lie_in_two_segments_are_refused(rings, angles):
    with pytest.raises(ValueError, match="multiple of 4"):
        segment_index(rings, angles)
    with pytest.raises(ValueError, match="multiple of 4"):
        polar_map(np.ones((8, 8, 8)), make_pose(), 10.0, rings, angles)


# -------------------------------------------------------------------------------------------- polar map

DEFECTS = [
    (band, wall) for band in ("basal", "mid", "apical") for wall in ("anterior", "septal", "inferior", "lateral")
]


@functools.cache
def healthy_means() -> np.ndarray:
    return segment_means(polar_map(shell(make_pose()), make_pose(), 4.0))


@pytest.mark.parametrize("band, wall", DEFECTS)
def test_a_defect_lies_in_its_segments_and_nowhere_else(band, wall):
    """One wall, 90° wide, of one third of the heart is cold."""
    third = {"basal": 2, "mid": 1, "apical": 0}[band]
    centre = {"anterior": 0, "septal": 90, "inferior": 180, "lateral": 270}[wall]
    pose = make_pose()

    def cold(along, degrees):
        return (along > third / 3) & (along < (third + 1) / 3) & wall_of(degrees, centre, 45)

    ratio = segment_means(polar_map(shell(pose, cold=cold), pose, 4.0)) / healthy_means()
    low = {  # a wall at 0° or 180° is one segment of six and a quarter of two; at 90° or 270° 3/4 of two
        "basal": {"anterior": [1], "septal": [2, 3], "inferior": [4], "lateral": [5, 6]},
        "mid": {"anterior": [7], "septal": [8, 9], "inferior": [10], "lateral": [11, 12]},
        "apical": {"anterior": [13], "septal": [14], "inferior": [15], "lateral": [16]},
    }[band][wall]
    expected = np.isin(np.arange(1, 18), low)
    assert (ratio[expected] < 0.65).all(), ratio.round(2)
    assert (ratio[~expected] > 0.75).all(), ratio.round(2)
    assert set(np.argsort(ratio)[: len(low)] + 1) == set(low)


def test_an_apical_defect_is_segment_17():
    pose = make_pose()
    image = shell(pose, cold=lambda along, _: along < 0)
    ratio = segment_means(polar_map(image, pose, 4.0)) / healthy_means()
    assert ratio[16] < 0.5 and (ratio[:12] > 0.99).all() and (ratio[12:16] > 0.8).all(), ratio.round(2)


@pytest.mark.parametrize("voxel_mm, spread", [(4.0, 0.12), (10.0, 0.35)])
def test_a_uniform_shell_gives_an_even_map(voxel_mm, spread):
    """Coarse voxels lose counts by the partial volume of a wall of 11 mm, but no segment is lost."""
    pose = make_pose()
    polar = polar_map(shell(pose, voxel_mm), pose, voxel_mm)
    means = segment_means(polar)
    assert polar.shape == (24, 72) and polar.max() <= 1.0 + 1e-6
    assert np.median(polar) > {4.0: 0.98, 10.0: 0.8}[voxel_mm]  # the maximum across the wall, not its mean
    assert means.min() > (1 - spread) * means.max(), means.round(2)


def test_counts_scale_and_tensors_are_taken():
    pose = make_pose()
    image = shell(pose, 8.0)
    polar = polar_map(image, pose, 8.0)
    assert np.allclose(polar_map(7 * image, pose, 8.0), 7 * polar)
    assert np.array_equal(polar_map(torch.from_numpy(image), pose, 8.0), polar)


def test_turning_patient_and_pose_together_changes_nothing():
    def cold(along, degrees):
        return (along > 0.3) & wall_of(degrees, 300, 50)

    pose = make_pose()
    reference = segment_means(polar_map(shell(pose, cold=cold), pose, 4.0))
    image, centre = shell(pose, cold=cold), np.array(pose.centre)
    # Exact: a quarter turn about z takes (x, y) to (-y, x).
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    turned = LeftVentriclePose(
        turn @ centre, turn @ pose.axis, pose.length_mm, pose.radius_mm, pose.base_mm, turn @ pose.anterior
    )
    assert np.allclose(polar_map(np.rot90(image), turned, 4.0), polar_map(image, pose, 4.0), atol=1e-9)
    # Any other rotation: up to the voxels.
    rng = np.random.default_rng(1)
    for _ in range(3):
        turn = rotation(rng)
        turned = LeftVentriclePose(
            turn @ centre, turn @ pose.axis, pose.length_mm, pose.radius_mm, pose.base_mm, turn @ pose.anterior
        )
        means = segment_means(polar_map(shell(turned, cold=cold), turned, 4.0))
        assert np.abs(means - reference).max() < 0.05


# --------------------------------------------------------------------------------------------- short axis


def test_short_axis_is_displayed_from_the_apex():
    """Four hot spots beside the axis: anterior up, septum left, inferior down, lateral right."""
    pose = LeftVentriclePose((6.0, -2.0, 1.0), LEFT_ANTERIOR_DOWN, 44.0, 26.0, 20.0)
    # In the patient: a heart that points left, forward and down has its septum right, in front of the lateral wall.
    assert pose.anterior[2] > 0.8 and pose.septal[0] < -0.5 and pose.septal[1] < -0.5
    directions = {"up": pose.anterior, "left": pose.septal}
    directions |= {"down": -np.array(pose.anterior), "right": -np.array(pose.septal)}
    places = [(np.arange(40) - 19.5) * 4.0] * 3
    points = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1)
    for name, direction in directions.items():
        spot = np.array(pose.centre) + 24 * np.array(direction)
        image = np.exp(-((points - spot) ** 2).sum(axis=-1) / (2 * 6.0**2))
        slices = short_axis(image, pose, 4.0, spacing_mm=4.0, field_mm=100.0)
        number, row, column = np.unravel_index(slices.argmax(), slices.shape)
        assert abs(number * 4.0 - (pose.base_mm + ventricle.WALL_MM)) <= 4.0  # the centre's slice
        expected = {"up": (6, 12), "down": (18, 12), "left": (12, 6), "right": (12, 18)}[name]
        assert abs(row - expected[0]) <= 1 and abs(column - expected[1]) <= 1, name


def test_short_axis_runs_from_base_to_apex():
    pose = make_pose()
    slices = short_axis(shell(pose, background=0.0), pose, 4.0)
    assert slices.shape == (22, 25, 25)
    hole = slices[:, 12, 12]
    assert hole[:10].max() < 0.05 and hole[-8:].max() > 0.9  # open at the base, closed at the apex
    assert np.all(short_axis(np.ones((4, 4, 4)), make_pose(centre=(900.0, 0.0, 0.0)), 4.0) == 0)
    # Trilinear interpolation is exact for a linear image.
    linear = np.add.outer(np.add.outer(np.arange(40.0), 2 * np.arange(40.0)), 3 * np.arange(40.0))
    middle = short_axis(linear, pose, 4.0, spacing_mm=5.0, field_mm=35.0)[6, 3, 3]  # on the axis, at -30 + 6 * 5
    expected = (np.array(pose.centre) / 4.0 + 19.5) @ (1, 2, 3)
    assert math.isclose(middle, expected, rel_tol=1e-9)


# --------------------------------------------------------------------------------------------------- pose


@pytest.mark.parametrize("voxel_mm, degrees, millimetres", [(4.0, 4.0, 3.5), (10.0, 6.0, 4.0)])
def test_the_pose_of_shells_in_any_direction_is_found(voxel_mm, degrees, millimetres):
    """Random direction, size, place and, for every second shell, a defect."""
    rng = np.random.default_rng(2)
    for number in range(2):
        truth = make_pose(
            rng.normal(size=3), tuple(rng.uniform(-12, 12, 3)), length_mm=rng.uniform(38, 50),
            radius_mm=rng.uniform(22, 30), base_mm=rng.uniform(15, 24),
        )  # fmt: skip
        where = rng.uniform(0, 360)
        cold = (lambda along, degrees, where=where: (along > 0.2) & wall_of(degrees, where, 35)) if number % 2 else None
        pose = left_ventricle_pose(shell(truth, voxel_mm, cold=cold), voxel_mm, tilt_degrees=180)
        assert degrees_between(pose.axis, truth.axis) < degrees
        assert math.dist(pose.centre, truth.centre) < millimetres
        assert abs(pose.radius_mm - truth.radius_mm) < millimetres
        assert abs(pose.length_mm - truth.length_mm) < 2 * millimetres
        assert abs(pose.base_mm - truth.base_mm) < 2 * millimetres


@pytest.mark.parametrize("voxel_mm, shape", [(10.0, (28, 28, 16)), (4.0, (72, 72, 40))])
def test_the_pose_of_torsos_is_found(voxel_mm, shape):
    """Liver and spleen touch the heart; the scanner is off-centre by up to 10 mm. Tolerances: 4°, 4 mm."""
    for seed in range(2):
        rng = np.random.default_rng(seed)
        torso, shift = Torso.random(rng), rng.uniform(-10, 10, 3)
        image = torso.render(shape, voxel_mm, tuple(torso.heart_centre + shift)).activity
        pose = left_ventricle_pose(image, voxel_mm)
        assert degrees_between(pose.axis, apex_of(torso)) < 4
        assert math.dist(pose.centre, -shift) < 4
        assert abs(pose.radius_mm - (torso.radius - torso.wall / 2)) < 2
        assert abs(pose.length_mm - (torso.length - torso.wall / 2)) < 4


@pytest.mark.parametrize(
    "seed, changes",
    [
        (507, {"liver_uptake": 4.0, "spleen_uptake": 3.0}),
        (500, {"defect_uptake": 0.05, "defect_width": 1.2}),  # 140° of the circumference: a second opening
    ],
)
def test_neither_a_hot_liver_nor_a_large_defect_hides_the_pose(seed, changes):
    torso = replace(Torso.random(np.random.default_rng(seed)), **changes)
    pose = left_ventricle_pose(torso.render((28, 28, 16), 10.0, torso.heart_centre).activity, 10.0)
    assert degrees_between(pose.axis, apex_of(torso)) < 4 and math.hypot(*pose.centre) < 4


def test_a_torsos_defect_is_found_from_the_image_alone():
    """The simulator counts its defect's angle from the septum over the anterior wall."""
    healthy = replace(Torso.random(np.random.default_rng(5)), defect_uptake=1.0)
    for degrees, low in ((0, {8, 9, 14}), (-90, {10, 15})):
        sick = replace(
            healthy, defect_uptake=0.2, defect_angle=math.radians(degrees), defect_width=0.7, defect_along=0.35
        )
        images = [torso.render((40, 40, 26), 5.0, torso.heart_centre).activity for torso in (sick, healthy)]
        pose = left_ventricle_pose(images[0], 5.0)
        ratio = np.divide(*(segment_means(polar_map(image, pose, 5.0)) for image in images))
        assert set(np.argsort(ratio)[: len(low)] + 1) == low, ratio.round(2)
        assert ratio[[number - 1 for number in low]].max() < 0.75


def test_a_ventricle_in_an_impossible_direction_is_not_reported():
    """An image with all axes reversed, unless all directions are allowed."""
    truth = make_pose(-np.array(LEFT_ANTERIOR_DOWN))
    with pytest.raises(InputError, match="orientation"):
        left_ventricle_pose(shell(truth, 10.0), 10.0)
    pose = left_ventricle_pose(shell(truth, 10.0), 10.0, tilt_degrees=180)
    assert degrees_between(pose.axis, truth.axis) < 6


def test_images_without_a_ventricle_are_refused():
    with pytest.raises(InputError, match="empty"):
        left_ventricle_pose(np.zeros((16, 16, 16)), 10.0)
    with pytest.raises(InputError, match="finite"):
        left_ventricle_pose(np.full((16, 16, 16), np.nan), 10.0)
    with pytest.raises(InputError, match="No left ventricle"):
        left_ventricle_pose(np.random.default_rng(0).random((16, 16, 16)), 10.0)


def test_programming_errors_are_value_errors():
    pose, image = make_pose(), np.ones((8, 8, 8))
    with pytest.raises(ValueError, match="X, Y, Z"):
        polar_map(image[None], pose, 10.0)
    with pytest.raises(ValueError, match="voxel_mm"):
        short_axis(image, pose, 0.0)
    with pytest.raises(ValueError, match="spacing_mm"):
        short_axis(image, pose, 10.0, spacing_mm=-1.0)
    with pytest.raises(ValueError, match="search_mm"):
        left_ventricle_pose(image, 10.0, search_mm=0.0)
    with pytest.raises(ValueError, match="tilt_degrees"):
        left_ventricle_pose(image, 10.0, tilt_degrees=0.0)


@pytest.mark.parametrize(
    "changes",
    [{"axis": (0, 0, 0)}, {"radius_mm": 0.0}, {"base_mm": 44.0}, {"length_mm": math.nan}, {"anterior": (1, -1, -0.6)}],
)
def test_poses_that_make_no_sense_are_refused(changes):
    with pytest.raises(InputError):
        make_pose(**changes)


def test_a_pose_is_an_orthonormal_frame_for_any_axis():
    rng = np.random.default_rng(3)
    for axis in [*rng.normal(size=(20, 3)), (0, 0, -1), (0, 0, 1), (0.01, 0, -1)]:
        pose = make_pose(axis)
        frame = np.array([pose.axis, pose.anterior, pose.septal])
        assert np.allclose(frame @ frame.T, np.eye(3), atol=1e-9)
        again = make_pose(pose.axis, anterior=pose.anterior)
        assert np.allclose([again.axis, again.anterior, again.septal], frame, atol=1e-12)


# ------------------------------------------------------------------------------------------------ drawing


def test_the_drawing_shows_every_bin_where_it_belongs():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    polar = np.zeros((24, 72))
    polar[segment_index() == 9] = 1.0  # mid inferoseptal: left and below
    mesh = draw_polar_map(axes, polar, vmax=2.0, cmap="gray")
    assert mesh.get_clim() == (0.0, 2.0)
    canvas.draw()
    grey = np.asarray(canvas.buffer_rgba())[..., 0]

    def at(radius, degrees):
        x, y = -radius * math.sin(math.radians(degrees)), radius * math.cos(math.radians(degrees))
        column, row = axes.transData.transform((x, y))
        return grey[round(300 - row), round(column)]

    assert abs(int(at(0.62, 120)) - 128) < 4
    assert at(0.62, 240) == at(0.62, 60) == at(0.9, 120) == at(0.35, 120) == at(0.1, 120) == 0
    with pytest.raises(ValueError, match="multiple of 4"):
        draw_polar_map(axes, np.ones((3, 5)))


def test_examples():
    for documented in (module, ventricle):
        assert doctest.testmod(documented).failed == 0
