"""Stand-in for the T1w and T2w images of dmDIP: infants from birth to one year, in the layout of BIDS.

Each infant has a session with a T1w and a T2w volume of coronal sections (`infant_slice`). In the sizes `cpu` and
`study` there are two infants of each of the paper's five ages, with one section each, so that test cases are
independent of each other; in `paper` five infants with twelve sections.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Size = Literal["smoke", "cpu", "study", "paper"]
AGES = (0.5, 3.0, 6.0, 9.0, 12.0)  # months, those of the paper


@dataclass(frozen=True)
class Setting:
    """What is written."""

    months: tuple[float, ...]
    """age of each infant"""
    sections: int
    side: int
    """pixels"""
    pixel_mm: float


SETTINGS = {
    "smoke": Setting((0.5, 12.0), 2, 32, 4.2),
    "cpu": Setting(AGES * 2, 1, 48, 2.8),
    "study": Setting(AGES * 2, 1, 48, 2.8),
    "paper": Setting(AGES, 12, 192, 0.8),
}
FIRST_MM, LAST_MM = -40.0, 8.0
"""range of the sections along A, in the coordinates of an adult's head"""


def generate(out: Path, seed: int = 0, size: Size = "cpu") -> Path:
    """Write the data set to `out`, which appears only when it is complete.

    Args:
        out: folder to create.
        seed: of everything random; an infant depends only on seed, size and its number.
        size: smoke (two infants, tiny), cpu and study (ten, one section each) or paper (five, 192 x 192).

    Raises:
        InputError: unknown size.
    """
    from benchmarks.standins.infant_slice import Infant, section
    from shared import nifti
    from shared.errors import InputError
    from shared.files import complete_or_absent

    if size not in SETTINGS:
        raise InputError(f"unknown size '{size}': choose one of {', '.join(SETTINGS)}")
    setting = SETTINGS[size]
    with complete_or_absent(out) as folder:
        for number, months in enumerate(setting.months):
            rng = np.random.default_rng([seed, number])
            infant = Infant.random(rng, months)
            if setting.sections == 1:
                places = [float(rng.uniform(FIRST_MM, LAST_MM))]
            else:
                places = list(np.linspace(FIRST_MM, LAST_MM, setting.sections))
            pairs = [section(infant, rng, place, setting.side, setting.pixel_mm) for place in places]
            apart = (LAST_MM - FIRST_MM) / max(setting.sections - 1, 1)
            affine = np.diag([setting.pixel_mm, apart, setting.pixel_mm, 1.0])
            affine[:3, 3] = [
                -setting.pixel_mm * (setting.side - 1) / 2,
                places[0],
                -setting.pixel_mm * setting.side / 2,
            ]
            subject, session = f"sub-{number + 1:02d}", f"ses-{round(10 * months):03d}"
            for contrast in pairs[0]:
                volume = np.stack([pair[contrast] for pair in pairs], axis=1)
                path = folder / subject / session / "anat" / f"{subject}_{session}_{contrast}.nii.gz"
                nifti.save(path, volume, affine=affine)
    return Path(out)
