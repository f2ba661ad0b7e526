"""Coronal sections of infants' brains in T1w and T2w: one anatomy, two contrasts that change over the first year.

The anatomy is that of `brain` (MNI152 with gyri of each subject's own), made smaller by age and with sharp borders
between tissues. Before about six months white matter has longer T1 and T2 than grey, so that it is darker in T1w and
brighter in T2w; at about six months the two are alike; afterwards it is as in adults. Myelination starts in the
middle of the brain. Skull and scalp are taken away, as brain extraction does. A section is acquired as a scanner does:
the k-space of the (finer) object is cut off at the pixel's own frequency, with complex noise, and the magnitude is the
image.

    infant = Infant.random(np.random.default_rng(0), months=3)
    pair = section(infant, rng, y_mm=-18.0, side=48, pixel_mm=2.8)      # "T1w", "T2w": (side, side) float32, R and S
"""

from dataclasses import dataclass, replace

import numpy as np

from benchmarks.standins.brain import BRAIN_TISSUES, RELAXATION, TISSUES, Brain, Sequence, signal, tissues

T1W = Sequence(tr_ms=700, te_ms=12)
T2W = Sequence(tr_ms=3200, te_ms=120)
SEQUENCES = {"T1w": T1W, "T2w": T2W}

MONTHS = (0.0, 0.5, 3.0, 6.0, 9.0, 12.0, 18.0)
SIZE = (0.70, 0.72, 0.80, 0.86, 0.89, 0.91, 0.94)
"""length of the head relative to an adult's"""
WHITE = ((2450, 225, 0.92), (2400, 220, 0.92), (1900, 160, 0.88), (1500, 118, 0.83), (1250, 98, 0.79), (1080, 86, 0.76),
         (950, 80, 0.73))  # fmt: skip
GREY = ((1920, 142, 0.88), (1900, 140, 0.88), (1700, 125, 0.86), (1550, 116, 0.85), (1500, 110, 0.84),
        (1450, 105, 0.83), (1400, 100, 0.82))  # fmt: skip
"""T1 [ms], T2 [ms] and proton density at MONTHS"""
CENTRE, LEAD_MONTHS, REACH_MM = (0.0, -18.0, 10.0), 1.5, 44.0
"""White matter in the middle of the brain is so many months ahead of the mean, at twice the reach as many behind."""
FINER, SHARPNESS = 3, 4
"""Samples of the object per pixel and axis; exponent that sharpens the tissue probabilities into borders."""


@dataclass(frozen=True)
class Infant:
    """A head and its age."""

    brain: Brain
    months: float

    @classmethod
    def random(cls, rng: np.random.Generator, months: float) -> "Infant":
        """A random infant; everything is drawn from `rng`."""
        brain = Brain.random(rng, age=20.0)  # years: the narrowest sulci and ventricles that `brain` has
        size = np.interp(months, MONTHS, SIZE)
        return cls(replace(brain, matrix=brain.matrix / size), float(months))


def relaxation(table: tuple, months: float) -> tuple[float, float, float]:
    """T1 [ms], T2 [ms], proton density at an age."""
    return tuple(float(np.interp(months, MONTHS, column)) for column in zip(*table))


def tissue_maps(infant: Infant, y_mm: float, side: int, pixel_mm: float) -> tuple[dict, np.ndarray]:
    """Tissue -> (side, side), and the positions (3, side, side) [mm]: the plane through `y_mm`, centred on the head."""
    size = np.interp(infant.months, MONTHS, SIZE)
    axis = (np.arange(side, dtype=np.float32) - (side - 1) / 2) * np.float32(pixel_mm)
    x, z = np.meshgrid(axis, axis + np.float32(14.0 - 2.0 / size), indexing="ij")
    points = np.stack([x, np.full_like(x, y_mm), z])[:, :, None]
    maps = tissues(infant.brain, points.shape[1:], 1.0, points=points)
    raised = {name: volume[:, 0] ** SHARPNESS for name, volume in maps.items()}
    air = np.clip(1 - sum(maps.values()), 0, 1)[:, 0] ** SHARPNESS
    total = air + sum(raised.values())
    return {name: raised[name] / total for name in TISSUES}, points[:, :, 0]


def object_signal(infant: Infant, maps: dict, points: np.ndarray, sequence: Sequence) -> np.ndarray:
    """Noise-free signal of the object (side, side)."""
    months = infant.months
    distance = np.sqrt(sum((points[i] - CENTRE[i]) ** 2 for i in range(3)))
    lead = np.clip(1 - distance / REACH_MM, -1, 1) * LEAD_MONTHS
    early, late = (signal(*relaxation(WHITE, max(months + step, 0)), sequence) for step in (-LEAD_MONTHS, LEAD_MONTHS))
    white = early + (late - early) * (lead + LEAD_MONTHS) / (2 * LEAD_MONTHS)
    grey = relaxation(GREY, months)
    deep = tuple((0.7 * g + 0.3 * w) for g, w in zip(grey, relaxation(WHITE, months + LEAD_MONTHS)))
    of = {**RELAXATION, "cortex": grey, "deep_grey": deep}
    image = sum(
        np.float32(signal(*of[name], sequence)) * maps[name] for name in BRAIN_TISSUES if name != "white_matter"
    )
    return (image + white * maps["white_matter"]).astype(np.float32)


def acquire(rng: np.random.Generator, fine: np.ndarray, side: int, noise: float) -> np.ndarray:
    """Magnitude image (side, side) from the k-space of a finer object, with complex noise.

    Args:
        rng: generator.
        fine: (n, n) with n > side.
        side: of the image; frequencies below side / 2 are acquired.
        noise: standard deviation, as a share of the 99.9th percentile of the image.
    """
    kspace = np.fft.fftshift(np.fft.fft2(fine, norm="forward"))
    first = len(fine) // 2 - side // 2
    image = np.fft.ifft2(np.fft.ifftshift(kspace[first : first + side, first : first + side]), norm="forward")
    sigma = noise * np.percentile(np.abs(image), 99.9)
    real, imaginary = rng.standard_normal((2, side, side)) * sigma
    return np.abs(image + real + 1j * imaginary).astype(np.float32)


def section(
    infant: Infant, rng: np.random.Generator, y_mm: float, side: int, pixel_mm: float, bias: float = 0.05, noise=0.01
) -> dict[str, np.ndarray]:
    """A coronal section in both contrasts, "T1w" and "T2w": (side, side) float32, axes R and S.

    Args:
        infant: the head.
        rng: of the receive fields and the noise.
        y_mm: where, in the template's coordinates scaled to this head (0 is the anterior commissure).
        side: pixels.
        pixel_mm: their size.
        bias: standard deviation of the receive field's logarithm.
        noise: see `acquire`.
    """
    size = float(np.interp(infant.months, MONTHS, SIZE))
    maps, points = tissue_maps(infant, -18.0 + (y_mm + 18.0) * size, FINER * side, pixel_mm / FINER)
    along = np.linspace(-1, 1, FINER * side)
    pair = {}
    for name, sequence in SEQUENCES.items():
        x, z, both = rng.standard_normal(3) * bias / np.sqrt(3) * 1.7
        field = np.exp(x * along[:, None] + z * along[None] + both * along[:, None] * along[None])
        pair[name] = acquire(rng, object_signal(infant, maps, points, sequence) * field, side, noise)
    return pair
