"""Simulated blood smears: one white cell, or a group of platelets, among red cells, under a bright-field microscope.

Colour comes from the Beer-Lambert law: haemoglobin, eosin and azure dyes each absorb red, green and blue by a known
amount, and their densities add up. Cells have the sizes (in micrometres) and the nuclei that tell their classes apart.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
FIELD = 18.0  # side of the picture in micrometres
# Absorbance of red, green and blue light at density 1.
HAEMOGLOBIN = np.array([0.08, 0.42, 0.38])
EOSIN = np.array([0.07, 0.58, 0.42])
AZURE = np.array([1.00, 1.05, 0.38])  # of the nucleus: purple
METHYLENE_BLUE = np.array([0.62, 0.34, 0.10])  # of basophilic cytoplasm: blue


@dataclass(frozen=True)
class Kind:
    """How a class of cell looks; pairs are the range from which a cell is drawn."""

    diameter: tuple[float, float]
    """micrometres"""
    nucleus: tuple[float, float]
    """nuclear area over cell area"""
    shape: str
    """round, kidney, lobes or none"""
    lobes: tuple[int, int] = (1, 1)
    """number of parts of a lobed nucleus"""
    chromatin: float = 1.0
    """density of the nucleus"""
    blue: tuple[float, float] = (0.0, 0.1)
    """methylene blue in the cytoplasm"""
    pink: tuple[float, float] = (0.0, 0.1)
    """eosin in the cytoplasm"""
    granules: tuple[str, float, float] = ("none", 0.0, 0.3)
    """dye (azure or eosin), share of the cytoplasm, diameter in micrometres"""


KINDS = (
    Kind((10.5, 13), (0.4, 0.55), "lobes", (2, 3), 0.75, (0.05, 0.2), (0.0, 0.1), ("azure", 0.5, 0.9)),
    Kind((12, 15), (0.28, 0.4), "lobes", (2, 2), 0.95, (0.0, 0.08), (0.12, 0.25), ("eosin", 0.6, 0.75)),
    Kind((8.5, 11.5), (0.4, 0.6), "round", (1, 1), 1.35, (0.2, 0.5), (0.1, 0.35)),
    Kind((13, 17), (0.45, 0.65), "kidney", (1, 1), 0.8, (0.15, 0.35), (0.05, 0.15), ("azure", 0.22, 0.45)),
    Kind((8.5, 12), (0.68, 0.86), "round", (1, 1), 1.1, (0.2, 0.45), (0.0, 0.05)),
    Kind((14, 17.5), (0.4, 0.55), "kidney", (1, 1), 0.7, (0.18, 0.35), (0.0, 0.1), ("azure", 0.06, 0.35)),
    Kind((11.5, 14), (0.28, 0.4), "lobes", (3, 5), 1.0, (0.0, 0.06), (0.08, 0.2), ("eosin", 0.15, 0.35)),
    Kind((2.5, 4.5), (0.0, 0.0), "none", (1, 1), 0.0, (0.1, 0.2), (0.05, 0.1), ("azure", 0.45, 0.6)),
)


def smooth_noise(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """(size, size) noise of unit variance, correlated over `scale` pixels."""
    field = ndimage.gaussian_filter(rng.standard_normal((size, size)), scale, mode="wrap")
    return field / field.std()


def disc(x, y, centre, radius, edge, ratio=1.0, angle=0.0) -> np.ndarray:
    """1 inside an ellipse of mean radius `radius`, falling to 0 over `edge`; all in micrometres."""
    dx, dy = x - centre[0], y - centre[1]
    u = (np.cos(angle) * dx + np.sin(angle) * dy) / np.sqrt(ratio)
    v = (-np.sin(angle) * dx + np.cos(angle) * dy) * np.sqrt(ratio)
    return np.clip((radius - np.hypot(u, v)) / edge + 0.5, 0, 1)


def nucleus_of(kind: Kind, x, y, centre, radius, rng: np.random.Generator) -> np.ndarray:
    """(size, size) in [0, 1]: round, kidney-shaped, or lobes on a bent string."""
    area = rng.uniform(*kind.nucleus)
    angle = rng.uniform(0, 2 * np.pi)
    size = radius * np.sqrt(area)
    shift = rng.uniform(0, 0.6) * (radius - size) * np.array([np.cos(angle), np.sin(angle)])
    middle = centre + shift
    if kind.shape == "round":
        return disc(x, y, middle, size, 0.4, rng.uniform(1, 1.15), angle)
    if kind.shape == "kidney":
        whole = disc(x, y, middle, 1.05 * size, 0.4, rng.uniform(1.1, 1.35), angle)
        normal = np.array([-np.sin(angle), np.cos(angle)])
        bite = disc(x, y, middle + normal * size * rng.uniform(0.9, 1.15), size * rng.uniform(0.3, 0.6), 0.6)
        return whole * (1 - bite)
    count = rng.integers(kind.lobes[0], kind.lobes[1] + 1)
    bend = rng.uniform(2.2, 4.2) if count > 2 else rng.uniform(1.6, 2.8)
    lobe = size / np.sqrt(count) * 0.98
    path = 0.62 * radius * (0.9 if count > 2 else 0.72)
    angles = angle + np.linspace(-bend / 2, bend / 2, count)
    places = centre + path * np.stack([np.cos(angles), np.sin(angles)], axis=1) - 0.15 * shift
    nucleus = np.zeros_like(x)
    for k, place in enumerate(places):
        sized = lobe * rng.uniform(0.85, 1.15)
        nucleus = np.maximum(nucleus, disc(x, y, place, sized, 0.4, rng.uniform(1, 1.4), angles[k] + np.pi / 2))
    for start, end in zip(places, places[1:]):  # thin bridges
        for t in np.linspace(0.2, 0.8, 5):
            nucleus = np.maximum(nucleus, 0.8 * disc(x, y, start + t * (end - start), 0.45, 0.4))
    return nucleus


def granules_of(kind: Kind, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) in [0, 1]: grains that cover the kind's share of the area."""
    _, share, diameter = kind.granules
    field = smooth_noise(rng, size, max(diameter / FIELD * size / 2.5, 0.6))
    threshold = np.quantile(field[::2, ::2], 1 - share)
    return np.clip((field - threshold) / 0.5 + 0.3, 0, 1) * (field > threshold - 0.15)


def red_cells(x, y, avoid: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Haemoglobin of red cells, 7 micrometres wide with a pale centre, that keep away from the cell at `avoid`."""
    density = np.zeros_like(x)
    for _ in range(rng.integers(5, 11)):
        place = rng.uniform(-3, FIELD + 3, 2)
        own = rng.normal(3.6, 0.25)
        if np.hypot(*(place - avoid)) < radius + 0.85 * own:
            continue
        ratio, angle = rng.uniform(1, 1.2), rng.uniform(0, np.pi)
        body = disc(x, y, place, own, 0.4, ratio, angle)
        pallor = disc(x, y, place, own * rng.uniform(0.35, 0.55), 1.8, ratio, angle)
        density = np.maximum(density, body * (1 - rng.uniform(0.3, 0.7) * pallor))
    return density


def make_blood_cell(rng: np.random.Generator, label: int, size: int = 112) -> np.ndarray:
    """One picture of class `label` (index into CLASSES), (size, size, 3) uint8.

    Staining strength, colour of the lamp, focus and photon noise vary from picture to picture.
    """
    kind = KINDS[label]
    # A smooth displacement makes outlines irregular.
    y, x = (np.mgrid[:size, :size] + 0.5) * FIELD / size
    x = x + 0.28 * smooth_noise(rng, size, size / 14)
    y = y + 0.28 * smooth_noise(rng, size, size / 14)
    centre = FIELD / 2 + rng.normal(0, 0.5, 2)
    radius = rng.uniform(*kind.diameter) / 2
    haemoglobin = red_cells(x, y, centre, radius, rng)
    cell = disc(x, y, centre, radius, 0.45, rng.uniform(1, 1.15), rng.uniform(0, np.pi))
    if kind.shape == "none":  # platelets lie in groups
        for _ in range(rng.integers(0, 3)):
            other = centre + rng.normal(0, 2.6, 2)
            cell = np.maximum(cell, disc(x, y, other, rng.uniform(1.0, 1.9), 0.45, rng.uniform(1, 1.4)))
    nucleus = np.zeros_like(x) if kind.shape == "none" else nucleus_of(kind, x, y, centre, radius, rng) * cell
    chromatin = 1 + 0.16 * smooth_noise(rng, size, size / 45)
    blue, pink = rng.uniform(*kind.blue), rng.uniform(*kind.pink)
    cytoplasm = cell * (1 - nucleus)
    azure = kind.chromatin * chromatin * nucleus
    eosin = pink * cytoplasm
    if kind.granules[0] != "none":
        grains = granules_of(kind, size, rng) * (cytoplasm + 0.35 * nucleus * (label == 0))
        dye = rng.uniform(0.6, 0.9)
        azure = azure + dye * grains * (kind.granules[0] == "azure")
        eosin = eosin + dye * grains * (kind.granules[0] == "eosin")
    stain, balance = rng.uniform(0.75, 1.25), rng.uniform(0.8, 1.2)
    absorbance = (
        rng.uniform(0.8, 1.2) * haemoglobin[..., None] * HAEMOGLOBIN * (1 - cell[..., None])
        + stain * balance * eosin[..., None] * EOSIN
        + stain / balance * (azure[..., None] * AZURE + (blue * cytoplasm)[..., None] * METHYLENE_BLUE)
    )
    lamp = rng.uniform(0.82, 0.95) * np.array([1.0, rng.uniform(0.92, 0.99), rng.uniform(0.88, 0.98)])
    picture = lamp * np.exp(-absorbance)
    picture = ndimage.gaussian_filter(picture, (*[rng.uniform(0.6, 1.6)] * 2, 0))
    photons = 4000
    picture = picture + np.sqrt(np.maximum(picture, 0) / photons) * rng.standard_normal(picture.shape)
    return np.clip(255 * picture, 0, 255).round().astype(np.uint8)
