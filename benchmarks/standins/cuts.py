"""Stand-in data for CUTS: fundus photographs, T1-weighted and FLAIR slices in the layout of its authors."""

from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from benchmarks.standins.fundus import make_fundus
from benchmarks.standins.head_slice import Head, acquire, contrast, make_head, smooth_noise
from shared.files import complete_or_absent

CASES = {"smoke": 4, "cpu": 24, "study": 16, "paper": 56}  # images of each of the three data sets
SIZE = {"smoke": 32, "cpu": 128, "study": 128, "paper": 128}  # pixels
T1 = {"scalp": 0.95, "skull": 0.1, "fluid": 0.22, "grey": 0.58, "white": 0.82, "deep": 0.68}
FLAIR = {"scalp": 0.7, "skull": 0.1, "fluid": 0.12, "grey": 0.6, "white": 0.48, "deep": 0.57}


def add_tumour(signal: np.ndarray, head: Head, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A glioma on FLAIR: lobulated, soft border, mottled, sometimes with a darker core; 2 to 5 % of the image."""
    size = signal.shape[0]
    rows, columns = np.mgrid[:size, :size]
    brain = head.tissues["white"] + head.tissues["grey"] + head.tissues["deep"] > 0.5
    deep_inside = ndimage.distance_transform_edt(ndimage.binary_closing(brain, iterations=2)) > size / 14
    candidates = np.argwhere(deep_inside & head.white)
    centre = candidates[rng.integers(len(candidates))] if len(candidates) else np.array([size // 2, size // 2])
    area = rng.uniform(0.02, 0.05)
    radius = np.sqrt(area / np.pi) * size
    distance = np.hypot(rows - centre[0], (columns - centre[1]) * rng.uniform(0.8, 1.25)) / radius
    field = -distance + 0.3 * smooth_noise(rng, size, size / 16) + 0.12 * smooth_noise(rng, size, size / 50)
    field[~ndimage.binary_closing(brain, iterations=1)] = -np.inf  # gyri, not fluid
    parts, count = ndimage.label(field > np.quantile(field, 1 - area))
    mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count else parts > 0  # in one piece
    soft = ndimage.gaussian_filter(mask.astype(float), size / 110) * (head.tissues["fluid"] < 0.5)
    inside = rng.uniform(0.15, 0.3) + 0.05 * smooth_noise(rng, size, size / 60)
    if rng.random() < 0.4:
        core = np.clip((field - np.quantile(field[mask], 0.75)) / 0.2, 0, 1)
        inside -= 0.2 * core
    return signal * (1 - soft) + (FLAIR["white"] + inside) * soft, mask


def ventricle_case(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """T1-weighted slice with the mask of the lateral ventricles."""
    head = make_head(rng, size, ventricle_width=(0.9, 1.8))
    image = acquire(contrast(head, T1, rng), rng, noise=rng.uniform(0.05, 0.08) * T1["white"])
    image[sum(head.tissues.values()) < 0.05] = 0  # air is masked, as in the authors' file
    return {"data": image.astype(np.float32), "label": head.ventricles, "white_matter": head.white}


def tumour_case(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """FLAIR slice with the mask of the tumour."""
    head = make_head(rng, size, ventricle_width=(0.7, 1.1))
    signal, mask = add_tumour(contrast(head, FLAIR, rng), head, rng)
    image = acquire(signal, rng, noise=rng.uniform(0.05, 0.08) * FLAIR["grey"])
    return {"image": image.astype(np.float32), "label": mask.astype(np.uint8)}


def generate(out: Path, seed: int = 0, size: Literal["smoke", "cpu", "study", "paper"] = "cpu") -> Path:
    """Write retina/, brain_ventricles/ and brain_tumor/ under `out`, which appears only when it is complete.

    Args:
        out: folder to create.
        seed: of everything random.
        size: smoke (4 images each, 32 pixels), cpu (24, 128 pixels), study (16) or paper (56).
    """
    from PIL import Image

    with complete_or_absent(Path(out)) as unfinished:
        names = ("retina/image_with_GA", "retina/label_with_GA", "brain_ventricles", "brain_tumor")
        images, labels, ventricles, tumours = folders = [unfinished / name for name in names]
        for folder in folders:
            folder.mkdir(parents=True)
        stacks: dict[str, list[np.ndarray]] = {}
        for number in range(CASES[size]):
            fundus = make_fundus(np.random.default_rng([seed, 0, number]), SIZE[size])
            Image.fromarray(fundus.image).save(images / f"image{number:03d}.png")
            np.save(labels / f"label{number:03d}.npy", fundus.atrophy.astype(np.uint8))
            for name, array in ventricle_case(np.random.default_rng([seed, 1, number]), SIZE[size]).items():
                stacks.setdefault(name, []).append(array)
            tumour = tumour_case(np.random.default_rng([seed, 2, number]), SIZE[size])
            np.savez_compressed(tumours / f"case{number:03d}.npz", **tumour)
        arrays = {name: np.stack(stack)[..., None] for name, stack in stacks.items()}
        arrays = {name: a.astype(np.uint8) if a.dtype == bool else a for name, a in arrays.items()}
        np.savez_compressed(ventricles / "prepared_data.npz", **arrays)
    return Path(out)
