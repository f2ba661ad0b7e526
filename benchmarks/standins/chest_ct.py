"""A chest CT without contrast medium, in Hounsfield units: anatomy, partial volume, quantum noise.

The body is a random `torso.Torso`: skin, fat, chest wall with ribs, spine, lungs, heart, diaphragm and liver. This
module turns it into CT numbers and adds what through-plane resolution is about: lung vessels and airways that branch
towards targets all over the lung, in every direction alike, so that axial images hold the same structures as coronal
ones; fissures, nodules, the cortex and the trabeculae of bone, fat between muscles, lobulated fat, mottled parenchyma.

Coordinates are those of `torso`: millimetres, x to the patient's left, y to the back, z to the head (LPS).
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from benchmarks.standins.torso import LABELS, Torso

# CT numbers over the torso's attenuation at 140 keV, cm^-1: lung, fat, stomach, muscle, liver, rib, spine.
MU_CM = (0.0, 0.045, 0.138, 0.145, 0.150, 0.158, 0.230, 0.250)
HU = (-1000.0, -860.0, -100.0, 20.0, 45.0, 60.0, 420.0, 480.0)
TRABECULAR_HU = 170.0
VESSEL_HU, AIR_HU, WALL_HU, FISSURE_HU = 40.0, -990.0, -250.0, -620.0


@dataclass(frozen=True)
class Tree:
    """Straight tubes: ends (N, 3) in mm, radius (N,) in mm."""

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray


def grow_tree(root: np.ndarray, targets: np.ndarray, leaf_radius: float, detour: float = 0.45) -> Tree:
    """A tree of tubes from `root` to every target; radii follow Murray's law (r³ is the sum over the branches).

    Targets are taken from near to far. Each joins the node that makes its own distance plus `detour` times the path
    back to the root smallest: 0 gives the shortest tree, 1 straight lines from the root.

    Args:
        root: (3,), mm.
        targets: (N, 3), mm.
        leaf_radius: of a tube that serves one target, mm.
    """
    targets = targets[np.argsort(np.linalg.norm(targets - root, axis=1))]
    nodes = np.concatenate([root[None], targets])
    path = np.zeros(len(nodes))
    parent = np.zeros(len(nodes), dtype=int)
    for number in range(1, len(nodes)):
        distance = np.linalg.norm(nodes[:number] - nodes[number], axis=1)
        parent[number] = np.argmin(distance + detour * path[:number])
        path[number] = path[parent[number]] + distance[parent[number]]
    leaves = np.ones(len(nodes))
    for number in range(len(nodes) - 1, 0, -1):
        leaves[parent[number]] += leaves[number]
    return Tree(nodes[parent[1:]], nodes[1:], leaf_radius * leaves[1:] ** (1 / 3))


class Canvas:
    """A volume of CT numbers with cubic voxels, on which tubes and balls are painted with partial volume."""

    def __init__(self, hu: np.ndarray, voxel_mm: float, centre_mm: tuple[float, float, float]):
        self.hu, self.voxel_mm = hu, voxel_mm
        self.axes = [
            ((np.arange(n) - (n - 1) / 2) * voxel_mm + c).astype(np.float32) for n, c in zip(hu.shape, centre_mm)
        ]

    def _box(self, low: np.ndarray, high: np.ndarray):
        """Slices of the voxels between two corners, and their coordinates; None if there are none."""
        slices = []
        for axis, a, b in zip(self.axes, low, high):
            first, last = np.searchsorted(axis, (a, b))
            if first >= last:
                return None
            slices.append(slice(int(first), int(last)))
        x, y, z = (axis[part] for axis, part in zip(self.axes, slices))
        return tuple(slices), x[:, None, None], y[None, :, None], z[None, None, :]

    def tube(self, start, end, radius: float, hu: float, inside: np.ndarray) -> None:
        """Paint a capsule where `inside` (bool volume) holds."""
        reach = radius + self.voxel_mm
        box = self._box(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        if box is None:
            return
        part, x, y, z = box
        along = (end - start).astype(np.float32)
        x, y, z = x - np.float32(start[0]), y - np.float32(start[1]), z - np.float32(start[2])
        t = np.clip((x * along[0] + y * along[1] + z * along[2]) / max(float(along @ along), 1e-6), 0, 1)
        distance = np.sqrt((x - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (z - t * along[2]) ** 2) - radius
        self._blend(part, distance, hu, inside)

    def _blend(self, part, distance: np.ndarray, hu: float, inside: np.ndarray) -> None:
        fraction = np.clip(0.5 - distance / np.float32(self.voxel_mm), 0, 1) * inside[part]
        self.hu[part] += fraction * (np.float32(hu) - self.hu[part])


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Isotropic Gaussian noise of unit variance with the correlation length `sigma` in voxels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap", truncate=3)
    return field / field.std()


def chest_ct(
    rng: np.random.Generator, shape: tuple[int, int, int], voxel_mm: float, centre_mm: tuple[float, float, float]
) -> np.ndarray:
    """One patient's CT as int16 HU (X, Y, Z), with noise of 8 to 16 HU per voxel.

    Args:
        rng: of the patient and the scan.
        shape: voxels.
        voxel_mm: side of the cubic voxels.
        centre_mm: of the volume, in the patient's coordinates (see the module's head).
    """
    anatomy = Torso.random(rng).render(shape, voxel_mm, centre_mm)
    hu = np.interp(anatomy.mu_map, MU_CM, HU).astype(np.float32)
    labels = anatomy.labels
    scale = 1 / voxel_mm  # voxels per mm
    fine, coarse = smooth_noise(rng, shape, 0.7 * scale), smooth_noise(rng, shape, 2.2 * scale)
    _tissue(hu, labels, fine, coarse, scale)
    canvas = Canvas(hu, voxel_mm, centre_mm)
    lung = labels == LABELS["lung"]
    if lung.any():
        _lung(canvas, lung, rng, fine)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), (0.6, 0.6, 0))  # in-plane kernel
    hu += noise * np.float32(rng.uniform(8, 16) / noise.std())
    return np.clip(np.round(hu), -1024, 3071).astype(np.int16)


def _tissue(hu: np.ndarray, labels: np.ndarray, fine: np.ndarray, coarse: np.ndarray, scale: float) -> None:
    """Structure within soft tissue, fat, liver and bone, in place."""
    muscle, fat = labels == LABELS["soft tissue"], labels == LABELS["fat"]
    planes = np.clip((np.abs(coarse) < 0.12) * 1.0 + (coarse > 1.6), 0, 1).astype(np.float32)  # fat between muscles
    hu -= 110 * muscle * ndimage.gaussian_filter(planes, 0.5 * scale)
    septa = ndimage.gaussian_filter((np.abs(coarse) < 0.08).astype(np.float32), 0.4 * scale)
    hu += 70 * fat * septa + 6 * fine * (muscle | fat | (labels == LABELS["liver"]))
    bone = np.isin(labels, [LABELS[name] for name in ("spine", "sternum", "rib")])
    core = np.clip(2 * ndimage.gaussian_filter(bone.astype(np.float32), 1.3 * scale) - 1.05, 0, 1)
    hu += bone * core * (TRABECULAR_HU - hu + 55 * fine)


def _lung(canvas: Canvas, lung: np.ndarray, rng: np.random.Generator, fine: np.ndarray) -> None:
    """Parenchyma, fissure, arteries, veins, airways and nodules of the lungs, in place."""
    x, y, z = canvas.axes
    canvas.hu += lung * (14 * fine + 0.25 * y[None, :, None])  # dependent lung is denser
    voxels = np.argwhere(lung)
    points = np.stack([axis[voxels[:, k]] for k, axis in enumerate(canvas.axes)], axis=1)
    litres = len(points) * canvas.voxel_mm**3 / 1e6
    inner = ndimage.binary_erosion(lung, iterations=max(1, round(1.5 / canvas.voxel_mm)))
    density = rng.uniform(1100, 2000)  # targets per litre
    for side in (-1, 1):
        here = points[np.sign(points[:, 0]) == side]
        if len(here) < 100:
            continue
        _fissure(canvas, lung, here, rng)
        share = len(here) / len(points)
        for root, part in (((28, 2, 32), 0.5), ((26, 18, 8), 0.5)):  # pulmonary artery, veins
            root = np.array([side * root[0], root[1], root[2]], dtype=float)
            count = max(4, round(density * litres * share * part))
            targets = here[rng.integers(len(here), size=count)] + rng.normal(0, 0.3, (count, 3))
            tree = grow_tree(root, targets, leaf_radius=rng.uniform(0.42, 0.55))
            if part and root[1] < 10:
                _airways(canvas, tree, lung, rng)
            for start, end, radius in zip(tree.start, tree.end, tree.radius):
                canvas.tube(start, end, radius, VESSEL_HU, lung)
    for _ in range(rng.integers(2, 5) if inner.any() else 0):
        _nodule(canvas, np.argwhere(inner), lung, rng)


def _airways(canvas: Canvas, tree: Tree, lung: np.ndarray, rng: np.random.Generator) -> None:
    """Bronchi beside the arteries, as wide as these: a wall, then the lumen."""
    aside = rng.normal(size=3)
    aside /= np.linalg.norm(aside)
    wide = tree.radius > 0.9
    for start, end, radius in zip(tree.start[wide], tree.end[wide], tree.radius[wide]):
        shift = 2.1 * radius * aside
        canvas.tube(start + shift, end + shift, radius + 0.3 + 0.1 * radius, WALL_HU, lung)
    for start, end, radius in zip(tree.start[wide], tree.end[wide], tree.radius[wide]):
        shift = 2.1 * radius * aside
        canvas.tube(start + shift, end + shift, radius, AIR_HU, lung)


def _fissure(canvas: Canvas, lung: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> None:
    """The oblique fissure: a curved sheet that falls from the back to the front."""
    x, y, z = (
        axis.reshape([-1 if k == n else 1 for k in range(3)]) - points[:, n].mean()
        for n, axis in enumerate(canvas.axes)
    )
    bend = 4 * np.sin(x / 25 + rng.uniform(0, 6)) + 3 * np.sin(y / 20 + rng.uniform(0, 6))
    sheet = np.abs(z - rng.uniform(0.5, 0.9) * y + bend + rng.uniform(-10, 10)) / 1.25 - 0.4
    side = np.sign(canvas.axes[0]) == np.sign(points[0, 0])
    whole = (slice(None),) * 3
    canvas._blend(whole, sheet.astype(np.float32), FISSURE_HU, lung & side[:, None, None])


def _nodule(canvas: Canvas, places: np.ndarray, lung: np.ndarray, rng: np.random.Generator) -> None:
    """A solid nodule of 3 to 12 mm, lobulated: a few overlapping balls."""
    centre = np.array([axis[k] for axis, k in zip(canvas.axes, places[rng.integers(len(places))])])
    radius = rng.uniform(1.5, 6)
    for _ in range(4):
        offset = rng.normal(0, 0.35 * radius, 3)
        canvas.tube(centre + offset, centre + 0.6 * offset, 0.75 * radius, rng.uniform(0, 60), lung)
