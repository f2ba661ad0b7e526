"""Where the voxels, pinholes and detector pixels of a cardiac SPECT scanner are.

Coordinates are millimetres with the origin in the centre of the image. Index 0 of x is the patient's right,
of y anterior, of z inferior (DICOM's LPS with z towards the head).
"""

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shared.errors import InputError
from shared.text_files import read_json

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))


@dataclass(frozen=True)
class PinholeGeometry:
    """Where the voxels, pinholes and detector pixels are: numbers only, so that it can be stored as JSON.

    Args:
        image_shape: voxels (X, Y, Z).
        voxel_mm: side of a cubic voxel, mm.
        detector_shape: pixels (U, V) of one detector; u is transaxial, v points towards the head.
        pixel_mm: side of a detector pixel, mm.
        pinhole_positions: centres of the apertures, mm, one (x, y, z) per angle.
        pinhole_axes: unit vectors from each pinhole into the field of view, perpendicular to its detector.
        focal_length_mm: distance from a pinhole to its detector, mm.
        aperture_sigma_mm: the aperture as a Gaussian of this sigma, mm.
        measured_angles: angles that the limited-angle protocol measures (central column, 9 of 19).
        padding_angles: empty angles appended after the pinholes, so that A is even and can be pooled.

    Raises:
        InputError: numbers that contradict each other.

    Example:
        >>> geometry = PinholeGeometry.ge570c(image_shape=(28, 28, 16), voxel_mm=10.0, detector_shape=(16, 16))
        >>> geometry.projection_shape, len(geometry.measured_angles)
        ((16, 16, 20), 9)
        >>> PinholeGeometry.from_dict(geometry.to_dict()) == geometry
        True
    """

    image_shape: tuple[int, int, int]
    voxel_mm: float
    detector_shape: tuple[int, int]
    pixel_mm: float
    pinhole_positions: tuple[tuple[float, float, float], ...]
    pinhole_axes: tuple[tuple[float, float, float], ...]
    focal_length_mm: float
    aperture_sigma_mm: float
    measured_angles: tuple[int, ...]
    padding_angles: int = 1

    def __post_init__(self):
        if len(self.image_shape) != 3 or len(self.detector_shape) != 2:
            raise InputError(
                "A pinhole geometry needs image_shape (X, Y, Z) and detector_shape (U, V), got "
                f"{self.image_shape} and {self.detector_shape}."
            )
        counts = (*self.image_shape, *self.detector_shape, *self.measured_angles, self.padding_angles)
        if not all(isinstance(count, int) for count in counts):
            raise InputError("Shapes and numbers of angles of a pinhole geometry must be whole numbers.")
        lengths = (self.voxel_mm, self.pixel_mm, self.focal_length_mm, self.aperture_sigma_mm)
        if min(lengths) <= 0 or min(self.image_shape + self.detector_shape) < 1 or self.padding_angles < 0:
            raise InputError("Sizes and lengths of a pinhole geometry must be positive.")
        vectors = self.pinhole_positions + self.pinhole_axes
        if len(self.pinhole_positions) != len(self.pinhole_axes) or any(len(v) != 3 for v in vectors):
            raise InputError(
                f"A pinhole geometry needs one position and one axis (x, y, z) per pinhole, got "
                f"{len(self.pinhole_positions)} positions and {len(self.pinhole_axes)} axes."
            )
        if not all(0 <= angle < self.pinholes for angle in self.measured_angles):
            raise InputError(f"Measured angles must lie in 0..{self.pinholes - 1}, got {self.measured_angles}.")

    @property
    def pinholes(self) -> int:
        return len(self.pinhole_positions)

    @property
    def angles(self) -> int:
        """A: pinholes and padding together."""
        return self.pinholes + self.padding_angles

    @property
    def projection_shape(self) -> tuple[int, int, int]:
        return (*self.detector_shape, self.angles)

    @property
    def voxels(self) -> int:
        return math.prod(self.image_shape)

    @property
    def pixels(self) -> int:
        """Pixels of one detector, U * V: the number of rows of one angle."""
        return math.prod(self.detector_shape)

    @classmethod
    def ge570c(
        cls,
        image_shape: tuple[int, int, int] = (72, 72, 40),
        voxel_mm: float = 4.0,
        detector_shape: tuple[int, int] = (32, 32),
        radius_mm: float = 220.0,
        column_offset_mm: float = 100.0,
        magnification: float = 0.45,
        aperture_mm: float = 5.1,
        detector_mm: float = 78.7,
        padding_angles: int = 1,
    ) -> "PinholeGeometry":
        """An analytic scanner in the arrangement of the GE NM/CT 570c: 19 pinholes that all look at the heart.

        The pinholes stand on a cylinder of `radius_mm` around the heart, from 45 degrees right anterior to
        45 degrees left posterior: a column of 5 towards the head (angles 0-4), the central column of 9
        (angles 5-13) and a column of 5 towards the feet (angles 14-18). The vendor's matrix isn't public.

        Args:
            column_offset_mm: axial distance of the outer columns from the central one, mm.
            magnification: image size on the detector over object size, at the centre of the field of view.
            aperture_mm: diameter of the pinholes, mm; its Gaussian has this full width at half maximum.
            detector_mm: side of a detector, mm.
        """
        columns = (  # axial offset in mm, degrees from anterior towards the patient's left
            (column_offset_mm, np.linspace(-22.5, 112.5, 5)),
            (0.0, np.linspace(-45.0, 135.0, 9)),
            (-column_offset_mm, np.linspace(-22.5, 112.5, 5)),
        )
        positions = [
            (radius_mm * math.sin(math.radians(phi)), -radius_mm * math.cos(math.radians(phi)), z)
            for z, degrees in columns
            for phi in degrees
        ]
        axes = [tuple(-coordinate / math.hypot(*position) for coordinate in position) for position in positions]
        return cls(
            image_shape=tuple(image_shape),
            voxel_mm=voxel_mm,
            detector_shape=tuple(detector_shape),
            pixel_mm=detector_mm / detector_shape[0],
            pinhole_positions=tuple(positions),
            pinhole_axes=tuple(axes),
            focal_length_mm=magnification * radius_mm,
            aperture_sigma_mm=aperture_mm / FWHM_PER_SIGMA,
            measured_angles=tuple(range(5, 14)),
            padding_angles=padding_angles,
        )

    def refined(self, factor: int) -> "PinholeGeometry":
        """The same scanner with every voxel cut into factor³ voxels."""
        numbers = asdict(self)
        numbers["image_shape"] = tuple(factor * size for size in self.image_shape)
        numbers["voxel_mm"] = self.voxel_mm / factor
        return PinholeGeometry(**numbers)

    def measured_mask(self) -> Tensor:
        """(A,) float: 1 where the limited-angle protocol measures, else 0; broadcasts to projections."""
        mask = torch.zeros(self.angles)
        mask[list(self.measured_angles)] = 1.0
        return mask

    def voxel_centres(self) -> np.ndarray:
        """(X*Y*Z, 3) positions in mm, in the order of the matrix's columns."""
        axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2.0) * self.voxel_mm for n in self.image_shape]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3).astype(np.float32)

    def affine(self) -> np.ndarray:
        """(4, 4): voxel index to NIfTI's world coordinates (RAS+) in mm, the image's centre at 0.

        Our axes are LPS, so the first two change their sign.
        """
        affine = np.diag([-self.voxel_mm, -self.voxel_mm, self.voxel_mm, 1.0])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(self.image_shape) - 1) / 2)
        return affine

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, numbers: dict) -> "PinholeGeometry":
        """The inverse of `to_dict`, also after JSON has turned tuples into lists.

        Raises:
            InputError: a key is missing, unknown, or its value isn't of the right kind.
        """
        expected = {field.name for field in fields(cls)}
        if not isinstance(numbers, dict) or set(numbers) != expected:
            raise InputError(f"A pinhole geometry needs exactly the keys {sorted(expected)}.")
        try:
            return cls(**{name: _as_tuple(value) for name, value in numbers.items()})
        except TypeError as error:
            raise InputError(f"A pinhole geometry holds a value of the wrong kind: {error}.") from error

    def save(self, path: str | os.PathLike) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PinholeGeometry":
        """Reads what `save` wrote.

        Raises:
            InputError: the file is missing, isn't JSON, or isn't a geometry; the message names the file.
        """
        content = read_json(path, "the JSON of a pinhole geometry")
        try:
            return cls.from_dict(content)
        except InputError as error:
            raise InputError(f"{path} isn't a pinhole geometry: {error}") from error


def _as_tuple(value):
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value
