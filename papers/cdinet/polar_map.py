"""Short-axis slices and polar map of the left ventricle in an emission image, with the AHA's 17 segments.

    image ─► ventricle.left_ventricle_pose ─► short_axis                      slices, base to apex
                                 └──────────► polar_map ─► segment_means      17 numbers, AHA order
                                                  └──────► draw_polar_map

Images (X, Y, Z) with cubic voxels, coordinates as in `ventricle`. Angles around the long axis start at the
anterior wall and go over the septum to the inferior and the lateral wall, which is counter-clockwise on the
display: anterior wall up, septum left.

Segments: Cerqueira et al., Standardized myocardial segmentation and nomenclature for tomographic imaging of
the heart, Circulation 105 (2002), 539-542.
"""

import math

import numpy as np
from torch import Tensor

from papers.cdinet.ventricle import WALL_MM, LeftVentriclePose, checked_image, sample

SEGMENTS = (
    "basal anterior", "basal anteroseptal", "basal inferoseptal", "basal inferior", "basal inferolateral",
    "basal anterolateral", "mid anterior", "mid anteroseptal", "mid inferoseptal", "mid inferior",
    "mid inferolateral", "mid anterolateral", "apical anterior", "apical septal", "apical inferior",
    "apical lateral", "apex",
)  # fmt: skip
PROFILE_REACH_MM = 10.0  # the maximum is searched so far inside and outside the middle of the wall


# ---------------------------------------------------------------------------------------- reorientation


def short_axis(
    image: np.ndarray | Tensor,
    pose: LeftVentriclePose,
    voxel_mm: float,
    spacing_mm: float = 4.0,
    field_mm: float = 100.0,
) -> np.ndarray:
    """Slices across the long axis, as they are displayed: seen from the apex, trilinear interpolation.

    Args:
        image: (X, Y, Z).
        voxel_mm: side of the image's voxels, mm.
        spacing_mm: of the slices and of their pixels, mm.
        field_mm: side of a slice, mm.

    Returns:
        (slices, H, W), from just behind the basal plane to just beyond the apex; row 0 is anterior, column 0
        septal. 0 outside the image.

    Raises:
        ValueError: the image isn't 3D or a length isn't positive.

    Example:
        >>> pose = LeftVentriclePose((0.0, 0.0, 0.0), (1.0, -1.0, 0.0), 45.0, 27.0, 20.0)
        >>> short_axis(np.ones((28, 28, 16)), pose, voxel_mm=10.0).shape
        (22, 25, 25)
    """
    array = checked_image(image, voxel_mm)
    if spacing_mm <= 0 or field_mm < spacing_mm:
        raise ValueError(f"spacing_mm must be positive and at most field_mm, got {spacing_mm} and {field_mm}")
    long = np.arange(-pose.base_mm - WALL_MM, pose.length_mm + WALL_MM + spacing_mm / 2, spacing_mm)
    size = round(field_mm / spacing_mm)
    offset = (np.arange(size) - (size - 1) / 2.0) * spacing_mm
    axis, anterior, septal = np.array(pose.axis), np.array(pose.anterior), np.array(pose.septal)
    points = (
        np.array(pose.centre)
        + long[:, None, None, None] * axis
        - offset[None, :, None, None] * anterior
        - offset[None, None, :, None] * septal
    )  # (slices, H, W, 3)
    return sample(array, points, voxel_mm)


def polar_map(
    image: np.ndarray | Tensor,
    pose: LeftVentriclePose,
    voxel_mm: float,
    rings: int = 24,
    angles: int = 72,
) -> np.ndarray:
    """The highest count across the wall, from the apex (row 0) to the base (last row) and around the axis.

    A quarter of the rings each shows the apical cap, beyond the cavity, and the apical, mid and basal third of
    the cavity's length; they stop half a wall in front of the basal plane. Counts are sampled along the
    wall's normal, at most `PROFILE_REACH_MM` from its middle.

    Args:
        image: (X, Y, Z).
        voxel_mm: side of the image's voxels, mm.
        rings: a multiple of 4.
        angles: a multiple of 24, so that no bin lies in two segments.

    Returns:
        (rings, angles) in the unit of the image; the centre of column k is at (k + 0.5) 360° / angles from
        the anterior wall towards the septum.

    Raises:
        ValueError: the image isn't 3D, or rings or angles don't fit the segments.

    Example:
        >>> pose = LeftVentriclePose((0.0, 0.0, 0.0), (1.0, -1.0, 0.0), 45.0, 27.0, 20.0)
        >>> polar_map(np.ones((28, 28, 16)), pose, voxel_mm=10.0).shape
        (24, 72)
    """
    array = checked_image(image, voxel_mm)
    _check_bins(rings, angles)
    position = (np.arange(rings) + 0.5) * 4.0 / rings  # 0..1 apical cap, 1..4 from the cavity's tip to the base
    tip = pose.length_mm - WALL_MM / 2
    end = min(-pose.base_mm + WALL_MM / 2, tip)
    along = tip + (end - tip) * (position - 1.0) / 3.0
    theta = np.where(  # of the ellipsoid's parametrisation, 0 at the apex
        position < 1.0,
        position * math.acos(tip / pose.length_mm),
        np.arccos(np.clip(along / pose.length_mm, -1.0, 1.0)),
    )
    middle = np.stack([pose.length_mm * np.cos(theta), pose.radius_mm * np.sin(theta)], axis=-1)  # (rings, 2)
    normal = np.stack([np.cos(theta) / pose.length_mm, np.sin(theta) / pose.radius_mm], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    depth = np.linspace(-PROFILE_REACH_MM, PROFILE_REACH_MM, 21)
    section = middle[:, None] + depth[:, None] * normal[:, None]  # (rings, depths, 2): along and across the axis
    phi = (np.arange(angles) + 0.5) * 2.0 * math.pi / angles
    outward = np.cos(phi)[:, None] * np.array(pose.anterior) + np.sin(phi)[:, None] * np.array(pose.septal)
    points = (
        np.array(pose.centre)
        + section[:, None, :, :1] * np.array(pose.axis)
        + np.maximum(section[:, None, :, 1:], 0.0) * outward[None, :, None, :]
    )  # (rings, angles, depths, 3); no profile crosses the axis
    return sample(array, points, voxel_mm).max(axis=-1)


# --------------------------------------------------------------------------------------------- segments


def segment_index(rings: int = 24, angles: int = 72) -> np.ndarray:
    """(rings, angles) integers 1..17: the AHA segment of every bin of a polar map.

    Raises:
        ValueError: rings isn't a multiple of 4 or angles isn't one of 24.

    Example:
        >>> segment_index()[:, 0].tolist()[::6]  # the anterior wall from apex to base
        [17, 13, 7, 1]
    """
    _check_bins(rings, angles)
    degrees = (np.arange(angles) + 0.5) * 360.0 / angles
    six = ((degrees + 30.0) % 360.0 // 60.0).astype(int)  # anterior, anteroseptal, ... anterolateral
    four = ((degrees + 45.0) % 360.0 // 90.0).astype(int)  # anterior, septal, inferior, lateral
    bands = np.stack([np.full(angles, 17), 13 + four, 7 + six, 1 + six])
    return np.repeat(bands, rings // 4, axis=0)


def segment_means(polar: np.ndarray) -> np.ndarray:
    """The mean of a polar map (rings, angles) over each of the 17 segments: (17,), segment 1 first.

    Raises:
        ValueError: rings isn't a multiple of 4 or angles isn't one of 24.

    Example:
        >>> means = segment_means(np.ones((24, 72)))
        >>> means.shape, float(means.min()), float(means.max())
        ((17,), 1.0, 1.0)
    """
    polar = np.asarray(polar, dtype=np.float64)
    segment = segment_index(*polar.shape).ravel()
    return np.bincount(segment, polar.ravel(), 18)[1:] / np.bincount(segment, minlength=18)[1:]


def _check_bins(rings: int, angles: int) -> None:
    if rings < 4 or rings % 4 or angles < 24 or angles % 24:
        raise ValueError(f"rings must be a multiple of 4 and angles one of 24, got {rings} and {angles}")


def draw_polar_map(axes, polar: np.ndarray, vmax: float | None = None, cmap: str = "inferno"):
    """Draws a polar map (rings, angles) with the borders of the 17 segments: apex in the middle, anterior up.

    Args:
        axes: ordinary (not polar) axes of matplotlib.
        vmax: the end of the colour scale, which starts at 0; None takes the highest count.

    Returns:
        matplotlib's mesh, for a colour bar.

    Raises:
        ValueError: rings isn't a multiple of 4 or angles isn't one of 24.
    """
    from matplotlib.collections import LineCollection

    polar = np.asarray(polar, dtype=np.float64)
    _check_bins(*polar.shape)

    def at(radius, degrees):  # x to the right, y up; degrees from the top, counter-clockwise
        return -radius * np.sin(np.radians(degrees)), radius * np.cos(np.radians(degrees))

    radius = np.linspace(0.0, 1.0, polar.shape[0] + 1)[:, None]
    x, y = at(radius, np.linspace(0.0, 360.0, polar.shape[1] + 1)[None])
    mesh = axes.pcolormesh(x, y, polar, vmin=0.0, vmax=polar.max() if vmax is None else vmax, cmap=cmap)
    lines = [np.stack(at(circle, np.linspace(0.0, 360.0, 181)), axis=1) for circle in (0.25, 0.5, 0.75, 1.0)]
    lines += [np.stack(at(np.array([0.25, 0.5]), degrees), axis=1) for degrees in (45, 135, 225, 315)]
    lines += [np.stack(at(np.array([0.5, 1.0]), degrees), axis=1) for degrees in range(30, 360, 60)]
    axes.add_collection(LineCollection(lines, colors="white", linewidths=0.8))
    for name, degrees in (("anterior", 0), ("septal", 90), ("inferior", 180), ("lateral", 270)):
        axes.text(*at(1.1, degrees), name, ha="center", va="center", rotation=(degrees % 180 == 90) * 90)
    axes.set(aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
    axes.axis("off")
    return mesh
