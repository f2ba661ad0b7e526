"""Where the left ventricle lies in an emission image: its centre, long axis and size.

Coordinates are those of the projector: images (X, Y, Z) with cubic voxels, millimetres with the origin in the
centre of the image, x towards the patient's left, y towards the back, z towards the head.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.optimize import least_squares
from torch import Tensor

from shared.errors import InputError

WALL_MM = 10.0  # thickness of a wall averaged over the heartbeat
USUAL_AXIS = (0.69, -0.62, -0.37)  # of a patient on the back: leftwards by 48°, down by 22°
OUTSIDE = 0.15  # weight of what lies outside the shell when the pose is estimated
PRIOR = 0.3  # weight of the usual shape and direction against the image


@dataclass(frozen=True)
class LeftVentriclePose:
    """Where the left ventricle lies: the middle of its wall as an ellipsoid of revolution, cut off at the base.

    Args:
        centre: of the ellipsoid (x, y, z), mm.
        axis: long axis from base to apex (x, y, z), of any length; stored as a unit vector.
        length_mm: semi-axis along the long axis: from the centre to the apex.
        radius_mm: semi-axis across it.
        base_mm: from the centre back to the basal plane, less than `length_mm`.
        anterior: direction of the anterior wall; stored perpendicular to the axis, of unit length. None
            takes the direction towards the head.

    Raises:
        InputError: numbers that aren't finite, or a shape that no ventricle has.

    Example:
        >>> pose = LeftVentriclePose((0.0, 0.0, 0.0), (1.0, -1.0, 0.0), 45.0, 27.0, 20.0)
        >>> [round(float(number), 2) + 0.0 for number in pose.septal]
        [-0.71, -0.71, 0.0]
    """

    centre: tuple[float, float, float]
    axis: tuple[float, float, float]
    length_mm: float
    radius_mm: float
    base_mm: float
    anterior: tuple[float, float, float] | None = None

    def __post_init__(self):
        lengths = (self.length_mm, self.radius_mm, self.base_mm)
        if not np.isfinite([*self.centre, *self.axis, *lengths]).all() or np.linalg.norm(self.axis) < 1e-6:
            raise InputError("The pose of a left ventricle needs finite numbers and an axis other than zero.")
        if self.length_mm <= WALL_MM / 2 or self.radius_mm <= 0 or abs(self.base_mm) >= self.length_mm - WALL_MM / 2:
            raise InputError(
                "The pose of a left ventricle needs a positive radius and a base_mm smaller than its "
                f"length_mm less half a wall, got length_mm {self.length_mm:g}, radius_mm "
                f"{self.radius_mm:g} and base_mm {self.base_mm:g}."
            )
        axis = np.asarray(self.axis, dtype=float) / np.linalg.norm(self.axis)
        wanted = _towards_head(axis) if self.anterior is None else np.asarray(self.anterior, dtype=float)
        across = wanted - (wanted @ axis) * axis
        if not np.linalg.norm(across) > 1e-3 * np.linalg.norm(wanted):  # also catches NaN
            raise InputError("The anterior direction of a left ventricle must not be parallel to its axis.")
        for name, vector in (("axis", axis), ("anterior", across / np.linalg.norm(across)), ("centre", self.centre)):
            object.__setattr__(self, name, tuple(float(number) for number in vector))

    @property
    def septal(self) -> tuple[float, float, float]:
        """Unit vector from the axis towards the septum, perpendicular to the axis and to `anterior`."""
        return tuple(float(number) for number in np.cross(self.axis, self.anterior))


def _towards_head(axis: np.ndarray) -> np.ndarray:
    """What lies on the anterior side of an axis: the head, or left-anterior for one that points to the feet."""
    if abs(axis[2]) < 0.98:
        return np.array([0.0, 0.0, 1.0])
    return np.array([1.0, -1.0, 0.0]) * -np.sign(axis[2])


def left_ventricle_pose(
    image: np.ndarray | Tensor,
    voxel_mm: float,
    near_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    search_mm: float = 32.0,
    tilt_degrees: float = 55.0,
) -> LeftVentriclePose:
    """Finds the left ventricle of an emission image: a hot shell, open at the base, around a cold cavity.

    Templates of such shells in many directions and three sizes are correlated with the image around
    `near_mm`; the best few are refined by robust least squares, and the one that explains most of the image
    wins. What lies outside the shell counts little: the liver may be as hot as the wall and touch it. A large
    defect opens the shell as the base does; that is why directions far from `USUAL_AXIS` aren't tried.

    Args:
        image: (X, Y, Z), any unit, not negative where it matters.
        voxel_mm: side of a voxel, mm, up to about 12.
        near_mm: where to search, mm; the scanner's field of view is centred on the heart.
        search_mm: how far from `near_mm` the ventricle's centre may lie, mm.
        tilt_degrees: how far the axis may be from `USUAL_AXIS`; 180 tries all directions alike, e.g. for a
            phantom.

    Raises:
        InputError: the image is empty, isn't finite, or shows no shell in an allowed direction.
        ValueError: the image isn't 3D or a length or angle isn't positive.

    Example:
        >>> x, y, z = np.meshgrid(*[(np.arange(20) - 9.5) * 8.0] * 3, indexing="ij")
        >>> wall = np.abs(np.sqrt((x / 42) ** 2 + (y / 26) ** 2 + (z / 26) ** 2) - 1) < 0.2
        >>> pose = left_ventricle_pose(wall * (x > -20), voxel_mm=8.0)
        >>> pose.axis[0] > 0.99, abs(pose.radius_mm - 26) < 3
        (True, True)
    """
    array = checked_image(image, voxel_mm)
    if search_mm <= 0 or tilt_degrees <= 0:
        raise ValueError(f"search_mm and tilt_degrees must be positive, got {search_mm} and {tilt_degrees}")
    if not np.isfinite(array).all() or array.max() <= 0:
        raise InputError(
            "The image in which to find the left ventricle is empty or holds values that aren't "
            "finite; check the reconstruction."
        )
    sigma_mm = math.sqrt(max(16.0 - (voxel_mm / 2.5) ** 2, 0.0))  # fine grids are brought to a common resolution
    smooth = gaussian_filter(array, sigma_mm / voxel_mm)
    candidates = _candidates(smooth, voxel_mm, np.asarray(near_mm, dtype=float), search_mm, tilt_degrees)
    rough = [_refine(smooth, voxel_mm, candidate, tilt_degrees, 9.0) for candidate in candidates]
    rough.sort(key=lambda fit: fit[0], reverse=True)
    fine = [_refine(smooth, voxel_mm, shell, tilt_degrees, 6.5) for _, shell in rough[:2]]
    allowed = math.cos(math.radians(min(tilt_degrees, 180.0))) - 1e-6
    fine = [fit for fit in fine if fit[1][3:6] @ _usual_axis() >= allowed]
    explained, shell = max(fine, key=lambda fit: fit[0], default=(0.0, None))
    if explained < 0.4:
        raise InputError(
            "No left ventricle was found near the centre of the image; check the image and its "
            "orientation, or give the pose yourself."
        )
    return LeftVentriclePose(tuple(shell[:3]), tuple(shell[3:6]), *map(float, shell[6:]))


def _candidates(
    image: np.ndarray, voxel_mm: float, near: np.ndarray, search_mm: float, tilt_degrees: float
) -> list[np.ndarray]:
    """Up to three different starts (centre 3, axis 3, length, radius, base) by template correlation."""
    ball = _ball(60.0, 8.0)  # (P, 3)
    centres = near + _ball(search_mm, 8.0)  # (C, 3)
    samples = sample(image, centres[:, None] + ball, voxel_mm)  # (C, P)
    shapes = [(1.65 * radius, radius, 0.45 * 1.65 * radius) for radius in (20.0, 25.0, 31.0)]
    axes = _sphere(150)
    axes = axes[axes @ _usual_axis() >= math.cos(math.radians(min(max(tilt_degrees, 15.0), 180.0)))]
    scores = np.empty((len(centres), len(shapes), len(axes)))
    squares = samples**2
    floor = (0.05 * image.max()) ** 2  # of the variance: nothing is found in noise
    for index, shape in enumerate(shapes):
        long = ball @ axes.T  # (P, K)
        across = np.sqrt(np.maximum((ball**2).sum(axis=1, keepdims=True) - long**2, 0.0))
        distance = _distance(long, across, *shape[:2])
        template = _wall(distance, long, shape[2], 6.0)
        weight = _weight(distance)
        weight /= weight.sum(axis=0)
        contrast = template - (weight * template).sum(axis=0)
        covariance = samples @ (weight * contrast)
        variance = squares @ weight - (samples @ weight) ** 2
        scores[:, index] = covariance / np.sqrt(
            (np.maximum(variance, 0.0) + floor) * (weight * contrast**2).sum(axis=0)
        )
    chosen = []
    for best in np.argsort(scores, axis=None)[::-1][:2000]:
        centre, shape, axis = np.unravel_index(best, scores.shape)
        candidate = np.concatenate([centres[centre], axes[axis], shapes[shape]])
        if all(np.linalg.norm(candidate[:3] - other[:3]) > 15 or candidate[3:6] @ other[3:6] < 0.8 for other in chosen):
            chosen.append(candidate)
        if len(chosen) == 3:
            break
    return chosen


def _refine(
    image: np.ndarray, voxel_mm: float, start: np.ndarray, tilt_degrees: float, step_mm: float
) -> tuple[float, np.ndarray]:
    """Robust least squares of a shell and its background, sampled every `step_mm` around a start.

    Returns:
        The fraction of the variance in wall and cavity that the shell explains, and the numbers (9,) of the
        shell, in the order of the start: centre 3, axis 3, length, radius, base.
    """
    centre, axis, (length, radius, base) = start[:3], start[3:6], start[6:]
    side = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    side /= np.linalg.norm(side)
    up = np.cross(axis, side)
    offset = _ball(66.0, step_mm)
    sampled = sample(image, centre + offset, voxel_mm)
    weight = _weight(_distance(*_cylinder(offset, axis), length, radius))
    target = sampled / (np.quantile(sampled[weight > 0.5], 0.95) + 1e-6 * image.max())
    root = np.sqrt(weight / weight.sum())

    def tilted(numbers):
        direction = axis + numbers[3] * side + numbers[4] * up
        return direction / np.linalg.norm(direction)

    def model(numbers):
        length, radius, cut, sigma, wall, inside, outside = numbers[5:]
        long, across = _cylinder(offset - numbers[:3], tilted(numbers))
        distance = _distance(long, across, length, radius)
        background = inside + (outside - inside) / (1.0 + np.exp(-np.clip(distance / 4.0, -30, 30)))
        return background + wall * _wall(distance, long, cut * length, sigma)

    def residuals(numbers):
        length, radius, cut, sigma = numbers[5:9]
        usual = [(length / radius - 1.65) / 0.5, (cut - 0.45) / 0.3, (sigma - 6.0) / 4.0]
        if tilt_degrees < 180:
            usual.append(np.linalg.norm(tilted(numbers) - _usual_axis()) / math.radians(tilt_degrees))
        return np.concatenate([root * (model(numbers) - target), prior * np.array(usual)])

    # Shift of the centre 3, tilt 2, length, radius, base / length, blurred wall, heights of wall and background 2.
    lower = [-25, -25, -25, -1, -1, 27, 13, 0, 3, 0.1, 0, 0]
    upper = [25, 25, 25, 1, 1, 75, 45, 0.8, 11, 2.5, 1, 1]
    size = [5, 5, 5, 0.2, 0.2, 8, 5, 0.2, 2, 0.3, 0.2, 0.2]
    first = [0, 0, 0, 0, 0, length, radius, base / length, 6.0, 0.9, 0.1, 0.1]
    first = np.clip(first, np.add(lower, 1e-3), np.subtract(upper, 1e-3))
    # The loss grows linearly with a residual, so the image's share grows with the root of the number of points.
    outlier, prior = 0.15 * float(np.median(root)), PRIOR * math.sqrt(len(offset) / 3500)
    fit = least_squares(
        residuals, first, bounds=(lower, upper), loss="soft_l1", f_scale=outlier, x_scale=size, max_nfev=30,
        xtol=1e-4, ftol=1e-5,
    )  # fmt: skip
    share = (weight - OUTSIDE) / (weight - OUTSIDE).sum()
    error = (share * (model(fit.x) - target) ** 2).sum()
    variance = (share * (target - (share * target).sum()) ** 2).sum()
    length, radius, cut = fit.x[5:8]
    shell = [*(centre + fit.x[:3]), *tilted(fit.x), length, radius, cut * length]
    return 1.0 - error / max(variance, 1e-12), np.array(shell)


def _usual_axis() -> np.ndarray:
    return np.array(USUAL_AXIS) / np.linalg.norm(USUAL_AXIS)


def _wall(distance: np.ndarray, long: np.ndarray, base_mm: float, sigma_mm: float) -> np.ndarray:
    """A blurred shell of height 1, cut off behind the basal plane."""
    return np.exp(-0.5 * (distance / sigma_mm) ** 2) / (1.0 + np.exp(-np.clip((long + base_mm) / 3.0, -30, 30)))


def _weight(distance: np.ndarray) -> np.ndarray:
    """1 in the cavity and the wall, falling to OUTSIDE where other organs are."""
    return OUTSIDE + (1.0 - OUTSIDE) / (1.0 + np.exp(np.clip((distance - 8.0) / 2.0, -30, 30)))


def _distance(long: np.ndarray, across: np.ndarray, length: float, radius: float) -> np.ndarray:
    """Signed distance to the ellipsoid, mm, negative inside; first order near it, bounded in its middle."""
    level = np.sqrt((long / length) ** 2 + (across / radius) ** 2)
    slope = np.sqrt((long / length**2) ** 2 + (across / radius**2) ** 2)
    return level * (level - 1.0) / np.maximum(slope, 1e-9 + level / max(length, radius))


def _cylinder(offset: np.ndarray, axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) -> the coordinates along and across the axis, (N,) each, mm."""
    long = offset @ axis
    return long, np.sqrt(np.maximum((offset**2).sum(axis=1) - long**2, 0.0))


def _ball(radius_mm: float, step_mm: float) -> np.ndarray:
    """(N, 3) points of a cubic grid within a ball around 0."""
    reach = np.arange(-(radius_mm // step_mm), radius_mm // step_mm + 1) * step_mm
    points = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), axis=-1).reshape(-1, 3)
    return points[(points**2).sum(axis=1) <= radius_mm**2]


def _sphere(number: int) -> np.ndarray:
    """(number, 3) unit vectors, evenly spread: a Fibonacci lattice."""
    z = 1.0 - (2.0 * np.arange(number) + 1.0) / number
    phi = np.arange(number) * math.pi * (3.0 - math.sqrt(5.0))
    return np.stack([np.sqrt(1.0 - z**2) * np.cos(phi), np.sqrt(1.0 - z**2) * np.sin(phi), z], axis=1)


def sample(image: np.ndarray, points: np.ndarray, voxel_mm: float) -> np.ndarray:
    """Trilinear values at points (..., 3) in mm; 0 outside the image."""
    middle = (np.array(image.shape) - 1) / 2.0
    return map_coordinates(image, np.moveaxis(points / voxel_mm + middle, -1, 0), order=1, mode="constant")


def checked_image(image: np.ndarray | Tensor, voxel_mm: float) -> np.ndarray:
    array = image.detach().cpu().numpy() if torch.is_tensor(image) else np.asarray(image)
    if array.ndim != 3:
        raise ValueError(f"an image (X, Y, Z) is needed, got the shape {array.shape}")
    if not voxel_mm > 0:
        raise ValueError(f"voxel_mm must be positive, got {voxel_mm}")
    return array.astype(np.float64)
