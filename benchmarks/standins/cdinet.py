"""Stand-in for the cardiac SPECT/CT studies of CDI-Net, in their published layout.

Random torsos (`torso`), pinhole projections with attenuation, Poisson noise at 2 to 4 million counts, and a
low dose thinned from the very counts of the full dose (`emission`).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Size = Literal["smoke", "cpu", "study", "paper"]


@dataclass(frozen=True)
class Setting:
    """Grids, numbers of studies, and the counts of a full-dose study."""

    image_shape: tuple[int, int, int]
    voxel_mm: float
    detector_shape: tuple[int, int]
    studies: dict[str, int]
    counts: tuple[float, float] = (2e6, 4e6)


SETTINGS = {
    "smoke": Setting((12, 12, 8), 23.0, (8, 8), {"train": 4, "valid": 1, "test": 2}),
    "cpu": Setting((20, 20, 12), 14.4, (12, 12), {"train": 96, "valid": 12, "test": 12}),
    "study": Setting((20, 20, 12), 14.4, (12, 12), {"train": 96, "valid": 12, "test": 12}),
    "paper": Setting((72, 72, 40), 4.0, (32, 32), {"train": 40, "valid": 4, "test": 20}),
}
DOSE = 0.1  # fraction of the counts that the low dose keeps
POSITIONING_MM = 5.0  # standard deviation of how far the heart is from the centre of the field of view
VOXELS_AT_ONCE = 2**25  # of the fine grid; bounds the memory at the paper's size


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> Path:
    """Writes the data set to `out`, which appears only when it is complete.

    Args:
        out: folder to create; must not exist or be empty.
        seed: of everything random. A study depends only on seed, size, split and its number.
        size: "smoke" (seconds), "cpu" and "study" (the same data) or "paper" (the paper's grids).

    Returns:
        out.

    Raises:
        InputError: an unknown size, or `out` already holds something.
    """
    from papers.cdinet.geometry import PinholeGeometry
    from papers.cdinet.projector import Projector
    from papers.cdinet.system_matrix import pinhole_matrix, save_system_matrix
    from shared.errors import InputError
    from shared.files import complete_or_absent

    out = Path(out)
    if size not in SETTINGS:
        raise InputError(f"Unknown size {size!r}; choose one of {', '.join(SETTINGS)}.")
    setting = SETTINGS[size]
    geometry = PinholeGeometry.ge570c(setting.image_shape, setting.voxel_mm, setting.detector_shape)
    with complete_or_absent(out) as unfinished:
        matrix = pinhole_matrix(geometry)
        save_system_matrix(unfinished / "system_matrix.mat", matrix, geometry)
        geometry.save(unfinished / "geometry.json")
        projector = Projector(matrix, geometry)
        for split, studies in setting.studies.items():
            (unfinished / split).mkdir()
            step = max(1, VOXELS_AT_ONCE // geometry.refined(2).voxels)
            entropy = [seed, list(setting.studies).index(split)]
            for start in range(0, studies, step):
                numbers = range(start, min(start + step, studies))
                _write_studies(unfinished / split, numbers, projector, setting, entropy)
        (unfinished / "standin.json").write_text(json.dumps(_note(seed, size, setting), indent=1) + "\n")
    return out


def _write_studies(folder: Path, numbers: range, projector, setting: Setting, entropy: list[int]) -> None:
    """Simulates and writes the studies with these numbers, projected together."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from benchmarks.standins import emission
    from benchmarks.standins.torso import Torso
    from papers.cdinet.data import write_study
    from papers.cdinet.mlem import ml_em

    geometry = projector.geometry
    generators = [np.random.default_rng([*entropy, number]) for number in numbers]
    fine = geometry.refined(2)
    activities, mu_maps = [], []
    for rng in generators:
        torso = Torso.random(rng)
        centre = tuple(rng.normal(torso.heart_centre, POSITIONING_MM))  # the technologist centres the heart
        anatomy = torso.render(fine.image_shape, fine.voxel_mm, centre)
        activities.append(torch.from_numpy(anatomy.activity))
        mu_maps.append(torch.from_numpy(anatomy.mu_map))
    activity, fine_mu = torch.stack(activities)[:, None], torch.stack(mu_maps)[:, None]
    mu = F.avg_pool3d(fine_mu, 2)
    expected = emission.expected_counts(activity, mu, geometry).numpy()
    mask = emission.limited_angle_mask(geometry)
    for number, rng, noiseless, mu_map in zip(numbers, generators, expected[:, 0], mu[:, 0]):
        total = math.exp(rng.uniform(*map(math.log, setting.counts)))
        full, _ = emission.poisson_counts(noiseless, total, rng)
        low = emission.thin(full, DOSE, rng) / DOSE * mask
        low = low.astype(np.float32)
        low_image = ml_em(projector, torch.from_numpy(low)[None, None], angles_mask=torch.from_numpy(mask))
        study = {"mu": mu_map.numpy(), "image_low": low_image[0, 0].numpy()}
        study |= {"projections_full": full, "projections_low": low, "mask": mask}
        write_study(folder / f"study{number:03d}.h5", study)


def _note(seed: int, size: str, setting: Setting) -> dict:
    return {
        "name": "Analytic torso in a pinhole cardiac SPECT scanner",
        "stands_in_for": "474 99mTc-tetrofosmin SPECT/CT studies on a GE NM/CT 570c (not public)",
        "seed": seed,
        "size": size,
        "studies": setting.studies,
        "image": f"{setting.image_shape} voxels of {setting.voxel_mm} mm, centred on the heart",
        "projections": f"{setting.detector_shape} pixels, 19 pinholes + 1 empty angle, 9 measured",
        "counts": f"{setting.counts[0]:.0f} to {setting.counts[1]:.0f} at full dose",
        "low_dose": f"{DOSE:.0%} of these very counts, divided by {DOSE}",
        "cannot_show": [
            "clinical accuracy",
            "scatter",
            "breathing, heartbeat, and misregistration with CT",
            "the vendor's geometry and collimator response",
            "activity and attenuation outside the field of view",
        ],
    }
