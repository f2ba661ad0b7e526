"""Simulated patients of a dementia study: disease course, cognitive tests, diagnosis, MRI, PET, CSF and DTI values.

The course follows the cascade of Jack et al. (Lancet Neurology 2013): amyloid, tau, metabolism, atrophy and at last
cognition change as sigmoids of one disease time. Group means follow what ADNI publishes about its participants.
The diagnosis is what it is in such a study: a clinician's reading of the Clinical Dementia Rating (CDR) and the
Mini-Mental State Examination (MMSE) with a little judgement of their own. So cognitive scores hold the label.

All functions take arrays over people and a NumPy generator; nothing here knows a file format.
"""

from dataclasses import dataclass, fields

import numpy as np

NORMAL, MCI, DEMENTIA = 0, 1, 2
DAMAGE = 1.3  # impairment at the end of the disease's course, without other causes

# Cortical regions of FreeSurfer: left ADNI number, thickness [mm], area [mm^2], loss in Alzheimer's disease (0 to 1).
CORTEX = {
    "bankssts": (13, 2.5, 1000, 0.45), "caudalanteriorcingulate": (14, 2.6, 640, 0.15),
    "caudalmiddlefrontal": (15, 2.5, 2200, 0.25), "cuneus": (23, 1.9, 1450, 0.05),
    "entorhinal": (24, 3.2, 400, 1.0), "frontalpole": (25, 2.8, 220, 0.2), "fusiform": (26, 2.7, 3100, 0.6),
    "inferiorparietal": (31, 2.4, 4400, 0.55), "inferiortemporal": (32, 2.8, 3200, 0.65),
    "isthmuscingulate": (34, 2.4, 1000, 0.45), "lateraloccipital": (35, 2.2, 4600, 0.15),
    "lateralorbitofrontal": (36, 2.5, 2600, 0.25), "lingual": (38, 2.0, 2900, 0.1),
    "medialorbitofrontal": (39, 2.4, 1900, 0.25), "middletemporal": (40, 2.8, 3200, 0.65),
    "paracentral": (43, 2.3, 1350, 0.05), "parahippocampal": (44, 2.6, 690, 0.7),
    "parsopercularis": (45, 2.5, 1500, 0.25), "parsorbitalis": (46, 2.6, 680, 0.25),
    "parstriangularis": (47, 2.4, 1400, 0.25), "pericalcarine": (48, 1.6, 1350, 0.02),
    "postcentral": (49, 2.0, 4100, 0.05), "posteriorcingulate": (50, 2.4, 1200, 0.45),
    "precentral": (51, 2.5, 4800, 0.05), "precuneus": (52, 2.3, 3800, 0.5),
    "rostralanteriorcingulate": (54, 2.8, 800, 0.15), "rostralmiddlefrontal": (55, 2.3, 5600, 0.3),
    "superiorfrontal": (56, 2.6, 7000, 0.3), "superiorparietal": (57, 2.1, 5400, 0.3),
    "superiortemporal": (58, 2.7, 3700, 0.5), "supramarginal": (59, 2.5, 3900, 0.45),
    "temporalpole": (60, 3.6, 480, 0.7), "transversetemporal": (62, 2.3, 430, 0.2), "insula": (129, 2.9, 2200, 0.3),
}  # fmt: skip
# Volumes in mm^3: left and right (or one) ADNI number, mean, relative scatter, change by atrophy, change per year.
VOLUMES = {
    "hippocampus": ((29, 88), 3700, 0.09, -0.28, -0.006), "amygdala": ((12, 71), 1350, 0.12, -0.28, -0.006),
    "lateralventricle": ((37, 96), 17000, 0.4, 0.45, 0.03),
    "inferiorlateralventricle": ((30, 89), 900, 0.45, 0.8, 0.03),
    "thalamus": ((61, 120), 6300, 0.08, -0.05, -0.005), "caudate": ((16, 75), 3500, 0.12, -0.02, 0.0),
    "putamen": ((53, 112), 4700, 0.12, -0.05, -0.005), "pallidum": ((42, 101), 1500, 0.12, -0.02, -0.002),
    "accumbens": ((11, 70), 450, 0.18, -0.1, -0.006), "cerebellumcortex": ((17, 76), 48000, 0.1, 0.0, -0.003),
    "cerebellumwhite": ((18, 77), 14000, 0.12, 0.0, -0.002),
    "ventraldiencephalon": ((65, 124), 3700, 0.09, -0.04, -0.003),
    "choroidplexus": ((21, 80), 1700, 0.25, 0.15, 0.01), "vessel": ((66, 125), 60, 0.5, 0.0, 0.0),
    "brainstem": ((1,), 21000, 0.1, 0.0, -0.001), "callosum1": ((2,), 850, 0.15, -0.05, -0.003),
    "callosum2": ((3,), 420, 0.17, -0.07, -0.004), "callosum3": ((4,), 420, 0.17, -0.07, -0.004),
    "callosum4": ((5,), 400, 0.17, -0.07, -0.004), "callosum5": ((6,), 900, 0.15, -0.07, -0.003),
    "csf": ((7,), 1300, 0.2, 0.1, 0.01), "fifthventricle": ((8,), 3, 0.6, 0.1, 0.0),
    "fourthventricle": ((9,), 1900, 0.25, 0.02, 0.004), "thirdventricle": ((127,), 1600, 0.25, 0.2, 0.02),
    "hypointensities": ((128,), 3500, 0.7, 0.25, 0.04), "nonwhitehypointensities": ((68,), 30, 0.8, 0.0, 0.01),
    "opticchiasm": ((69,), 220, 0.25, 0.0, 0.0),
}  # fmt: skip
TRACTS = [f"{tract}_{side}" for tract in ("CST", "CGC", "CGH", "FX_ST", "SLF", "SFO", "IFO", "UNC") for side in "LR"]
TRACTS += ["GCC", "BCC", "SCC"]


@dataclass
class People:
    """What is true of people, whether it is measured or not. All arrays (n,)."""

    age: np.ndarray
    """years"""
    male: np.ndarray
    """bool"""
    education: np.ndarray
    """years"""
    apoe4: np.ndarray
    """number of epsilon-4 alleles, 0 to 2"""
    head: np.ndarray
    """intracranial volume in mm^3"""
    time: np.ndarray
    """years since the disease would show itself in a person without reserve; -30 where there is no disease"""
    reserve: np.ndarray
    """years by which cognition lags behind pathology"""
    other: np.ndarray
    """impairment from other causes, in units of c (see `impairment`)"""
    vascular: np.ndarray
    """load of small-vessel disease, about normal"""

    def __len__(self) -> int:
        return len(self.age)

    def take(self, index: np.ndarray) -> "People":
        """Some of the people."""
        return People(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def draw_people(rng: np.random.Generator, n: int) -> People:
    """People who come to a memory clinic or volunteer as controls."""
    age = np.clip(rng.normal(73.5, 7, n), 55, 91)
    male = rng.random(n) < 0.53
    education = np.clip(np.round(rng.normal(16, 2.8, n)), 6, 20)
    diseased = rng.random(n) < 0.55
    apoe4 = rng.binomial(2, np.where(diseased, 0.4, 0.14))
    time = np.where(diseased, rng.uniform(-12, 8, n), -30.0)
    vascular = rng.normal(size=n) + 0.05 * (age - 73.5)
    return People(
        age=age,
        male=male,
        education=education,
        apoe4=apoe4,
        head=rng.normal(np.where(male, 1.57e6, 1.38e6), 1.15e5),
        time=time,
        reserve=rng.normal(0, 1.3, n) + 0.2 * (education - 16),
        other=np.where(rng.random(n) < 0.18, rng.gamma(2, 0.15, n), 0.0) + 0.03 * np.maximum(vascular - 1, 0),
        vascular=vascular,
    )


def impairment(people: People) -> np.ndarray:
    """c: about 0.03 without complaints, 0.35 with mild impairment, 0.9 with mild dementia."""
    return DAMAGE * sigmoid((people.time - people.reserve - 2) / 1.8) + people.other


def clinical_dementia_rating(rng: np.random.Generator, c: np.ndarray) -> np.ndarray:
    """The six boxes (n, 6): memory, orientation, judgement, community, home (0, 0.5, 1, 2, 3), personal care."""
    slope = np.array([1.6, 1.3, 1.2, 1.1, 1.1, 0.6])
    start = np.array([0.0, 0.2, 0.1, 0.15, 0.15, 0.3])
    seen = c[:, None] * slope - start + rng.normal(0, 0.12, (len(c), 6))
    boxes = np.array([0, 0.5, 1, 2, 3])[np.digitize(seen, [0.25, 0.75, 1.5, 2.5])]
    boxes[:, 5] = np.where(boxes[:, 5] == 0.5, 1, boxes[:, 5])  # personal care has no half point
    return boxes


def cognitive_tests(rng: np.random.Generator, people: People) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Scores of the tests by their ADNI names, and the six CDR boxes."""
    n, c = len(people), impairment(people)
    boxes = clinical_dementia_rating(rng, c)
    learning = people.education - 16
    adas13 = np.clip(9 + 15 * c + 9 * c**2 - 0.3 * learning + rng.normal(0, 3.8, n), 0, 85)
    verbal = 45 - 23 * c - 0.3 * (people.age - 73.5) + np.where(people.male, -2, 2) + rng.normal(0, 8, n)
    scores = {
        "CDRSB": boxes.sum(1),
        "MMSE": np.clip(np.round(29.3 - 3.8 * c - 3.2 * c**2 + 0.1 * learning + rng.normal(0, 1.1, n)), 0, 30),
        "ADAS11": np.clip(np.round(0.62 * adas13 + rng.normal(0, 1.4, n), 2), 0, 70),
        "ADAS13": np.round(adas13, 2),
        "RAVLT_immediate": np.clip(np.round(verbal), 0, 75),
        "RAVLT_learning": np.clip(np.round(6 - 4 * c + rng.normal(0, 2.3, n)), -3, 14),
        "RAVLT_forgetting": np.clip(np.round(4 + 0.6 * c + rng.normal(0, 2.4, n)), -5, 13),
        "RAVLT_perc_forgetting": np.clip(np.round(36 + 46 * c + rng.normal(0, 26, n), 2), -50, 100),
        "FAQ": np.clip(np.round(14 * c**1.2 - 0.5 + rng.normal(0, 1, n) * (0.6 + 3.5 * c)), 0, 30),
        "MOCA": np.clip(np.round(26 - 3.5 * c - 6 * c**2 + 0.2 * learning + rng.normal(0, 2.2, n)), 0, 30),
    }
    return scores, boxes


def diagnose(rng: np.random.Generator, boxes: np.ndarray, mmse: np.ndarray) -> np.ndarray:
    """NORMAL, MCI or DEMENTIA (n,) from CDR boxes and MMSE, as the protocol asks, with some judgement.

    No impairment of memory, and of at most one other box: normal. Dementia: memory loss with a loss of function
    that the clinician finds severe enough, and MMSE at most 27. All others: mild cognitive impairment.
    """
    memory, others = boxes[:, 0], boxes[:, 1:]
    impaired = (memory >= 0.5) | ((others >= 0.5).sum(1) >= 2)
    severity = (boxes.sum(1) - 3.25) + 0.35 * (25.5 - mmse) + rng.normal(0, 0.7, len(mmse))
    demented = (memory >= 0.5) & (severity > 0) & (mmse <= 27)
    return np.where(demented, DEMENTIA, np.where(impaired, MCI, NORMAL))


def stage(rng: np.random.Generator, people: People, centre: float, width: float) -> np.ndarray:
    """Share (0 to 1) of a biomarker's whole change, with a person's own timing."""
    return sigmoid((people.time - centre + rng.normal(0, 1.5, len(people))) / width)


def biomarkers(rng: np.random.Generator, people: People) -> dict[str, np.ndarray]:
    """PET (SUVR), CSF (pg/ml), white-matter anisotropy and FreeSurfer values, by their names in ADNI."""
    n, older = len(people), people.age - 73.5
    amyloid, tau = stage(rng, people, -9, 2.0), stage(rng, people, -3, 2.5)
    metabolism, atrophy = stage(rng, people, 0.5, 2.0), stage(rng, people, 0, 2.5)
    values = {
        "FDG": 1.31 - 0.27 * metabolism - 0.003 * older + rng.normal(0, 0.09, n),
        "AV45": 1.06 + 0.33 * amyloid + rng.normal(0, 0.09, n),
        "ABETA": 1450 - 780 * amyloid + rng.normal(0, 280, n),
        "TAU": np.maximum(220 + 140 * tau + rng.normal(0, 65, n), 80),
    }
    values["PTAU"] = 0.1 * values["TAU"] - 2 + rng.normal(0, 1.5, n)
    for tract in TRACTS:
        medial = 1.0 if tract.startswith(("CGH", "FX", "SCC", "UNC")) else 0.3
        loss = 0.03 * medial * atrophy + 0.008 * people.vascular + 0.001 * older
        values[f"FA_{tract}"] = rng.uniform(0.35, 0.6) - loss + rng.normal(0, 0.022, n)
    return values | cortex(rng, people, atrophy, older) | volumes(rng, people, atrophy, older)


def shared_variation(rng: np.random.Generator, people: int, regions: int, factors: int = 8) -> np.ndarray:
    """(people, regions) with unit variance: regions vary together, by a few anatomical factors."""
    loadings = rng.normal(size=(factors, regions))
    loadings /= np.linalg.norm(loadings, axis=0)
    return rng.normal(size=(people, factors)) @ loadings


def cortex(rng: np.random.Generator, people: People, atrophy: np.ndarray, older: np.ndarray) -> dict[str, np.ndarray]:
    """Thickness (TA) and its scatter (TS) in mm, area (SA) in mm^2, volume (CV) in mm^3 of 34 regions a side."""
    names = [(name, side) for name in CORTEX for side in (0, 1)]
    n, r = len(people), len(names)
    numbers, thickness, area, loss = (np.array([CORTEX[name][k] for name, _ in names]) for k in range(4))
    right = np.array([(1 if name == "insula" else 59) * side for name, side in names])
    scale = (people.head[:, None] / 1.48e6) ** (2 / 3)
    surface = area * scale * np.exp(0.07 * shared_variation(rng, n, r) + 0.05 * rng.normal(size=(n, r)))
    depth = thickness * (1 - 0.15 * loss * atrophy[:, None]) - 0.005 * older[:, None]
    depth += 0.07 * shared_variation(rng, n, r) + (0.05 + 0.09 * (thickness > 3)) * rng.normal(size=(n, r))
    scatter = 0.22 * depth + 0.06 * rng.normal(size=(n, r)) + 0.02 * atrophy[:, None]
    measured = {"CV": surface * depth * np.exp(0.02 * rng.normal(size=(n, r))), "SA": surface, "TA": depth}
    measured["TS"] = scatter
    return {
        f"ST{numbers[k] + right[k]}{kind}": table[:, k].round(3) for k in range(r) for kind, table in measured.items()
    }


def volumes(rng: np.random.Generator, people: People, atrophy: np.ndarray, older: np.ndarray) -> dict[str, np.ndarray]:
    """Volumes (SV) in mm^3, and intracranial volume (ST10CV)."""
    values, n = {"ST10CV": people.head.round()}, len(people)
    for name, (numbers, mean, scatter, change, yearly) in VOLUMES.items():
        head = (people.head / 1.48e6) ** 0.8
        own = rng.normal(size=n)  # both sides have most of a person's deviation in common
        leaky = 0.1 * people.vascular if name == "hypointensities" else 0.0
        for number in numbers:
            deviation = scatter * (0.9 * own + 0.44 * rng.normal(size=n))
            relative = np.exp(deviation + np.log1p(change) * atrophy + yearly * older + leaky)
            values[f"ST{number}SV"] = (mean * head * relative).round(1)
    return values


def enrol(rng: np.random.Generator, counts: tuple[int, int, int]) -> tuple[People, dict, np.ndarray, np.ndarray]:
    """Recruit so many people of each diagnosis: mild dementia (MMSE 20 to 27, memory box at most 1), and MMSE of
    24 or more in all others, as ADNI does.

    Returns:
        people, their test scores at baseline, their CDR boxes and their diagnoses.
    """
    pool = draw_people(rng, 20 * max(counts) + 200)
    scores, boxes = cognitive_tests(rng, pool)
    diagnosis = diagnose(rng, boxes, scores["MMSE"])
    mild = (scores["MMSE"] >= 20) & (boxes[:, 0] <= 1)
    eligible = np.where(diagnosis == DEMENTIA, mild, scores["MMSE"] >= 24)
    able = [np.flatnonzero(eligible & (diagnosis == label)) for label in range(len(counts))]
    chosen = np.concatenate([index[:count] for index, count in zip(able, counts)])
    if len(chosen) < sum(counts):
        raise ValueError(f"the pool holds too few people for {counts}")
    chosen = rng.permutation(chosen)
    return pool.take(chosen), {k: v[chosen] for k, v in scores.items()}, boxes[chosen], diagnosis[chosen]


def one_year_later(people: People) -> People:
    """The same people after a year, where the disease goes on."""
    time = np.where(people.time > -30, people.time + 1, people.time)
    values = {field.name: getattr(people, field.name) for field in fields(people)}
    return People(**{**values, "time": time, "age": people.age + 1})
