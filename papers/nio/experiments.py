"""The experiments of the paper: which domain is trained on, which one is tested on, and the data of both."""

from collections.abc import Iterator

from papers.nio.data import FOLDERS, Pair, ScanPairs, Scans, scan_paths
from papers.nio.lungs import BreathPairs, Lungs, patients
from shared.errors import InputError

SETTINGS = {
    "oasis-lpba": ("oasis", "lpba"),
    "lpba-oasis": ("lpba", "oasis"),
    "lpba-lpba": ("lpba", "lpba"),
    "hippocampus-hippocampus": ("hippocampus", "hippocampus"),
    "lung": ("lung", "lung"),
}
"""setting -> domain that is trained on, domain that is tested on"""


class Domains:
    """The data of a folder, as the settings of a configuration need them.

    Raises:
        InputError: a setting that doesn't exist, sizes that 8 does not divide, or no data for any setting.
    """

    def __init__(self, config):
        for name in config.settings:
            if name not in SETTINGS:
                raise InputError(f"there is no setting '{name}': choose from {', '.join(SETTINGS)}")
        for option, shape in (("shape", config.shape), ("lung-shape", config.lung_shape)):
            if len(shape) != 3 or any(size % 8 or size < 8 for size in shape):
                raise InputError(f"--{option} {shape}: expected three sizes divisible by 8")
        there = {domain for domain in FOLDERS if domain != "lung" and scan_paths(config.data, domain)}
        there |= {"lung"} if patients(config.data) else set()
        self.settings = [name for name in config.settings if set(SETTINGS[name]) <= there]
        if not self.settings:
            wanted = sorted({FOLDERS[d] for name in config.settings for d in SETTINGS[name]})
            raise InputError(f"{config.data}: expected the folders {', '.join(wanted)}, or some of them, with scans")
        splits = {
            "oasis": config.oasis_split, "lpba": config.lpba_split, "hippocampus": config.hippocampus_split
        }  # fmt: skip
        used = {domain for name in self.settings for domain in SETTINGS[name]}
        voxels = {"hippocampus": config.hippocampus_spacing_mm}
        self.scans = {
            d: Scans(config.data, d, splits[d], config.shape, voxels.get(d, config.spacing_mm), config.label_zoom)
            for d in splits
            if d in used
        }
        self.lungs = Lungs(config.data, config.lung_shape) if "lung" in used else None
        self.folds = min(config.folds, len(self.lungs.patients)) if self.lungs else 0
        if self.lungs and self.folds < 2:
            raise InputError(f"--folds {config.folds}: expected at least 2, so that no case is trained and tested on")

    def sources(self) -> list[str]:
        """Names of the networks: one per brain domain that is trained on, one per fold of lungs."""
        brains = list(dict.fromkeys(SETTINGS[name][0] for name in self.settings if name != "lung"))
        return brains + [f"lung{fold}" for fold in range(self.folds)]

    def training_pairs(self, source: str):
        """Data set of training pairs for a network."""
        if source.startswith("lung"):
            return BreathPairs(self.lungs, int(source[4:]), self.folds)
        return ScanPairs(self.scans[source])

    def pairs(self, setting: str, most: int = 0) -> Iterator[Pair]:
        """The test pairs of a setting, or the first of them, one after another."""
        if setting == "lung":
            numbers = [number for number, _ in self.lungs.patients][: most or None]
            yield from (self.lungs.pair(number) for number in numbers)
            return
        scans = self.scans[SETTINGS[setting][1]]
        for name, moving, fixed in scans.pairs(setting, most=most):
            yield Pair(name, scans[moving], scans[fixed])

    def source_of(self, setting: str, pair: Pair) -> str:
        """Name of the network that registers a test pair."""
        if setting == "lung":
            return f"lung{self.lungs.fold(int(pair.name[-2:]), self.folds)}"
        return SETTINGS[setting][0]
