"""A frontal (PA) chest film, simulated: anatomy that varies, findings that are asked for, Beer-Lambert projection.

    film = simulate(np.random.default_rng(0), Findings(cardiomegaly=True, effusion="left"), size=256)
    film.image, film.truth["cardiothoracic_ratio"], film.report

Coordinates are millimetres in the plane of the patient's trachea, x to the patient's left (right in the image, as
films are hung), y downwards, origin at the carina; the film is 360 mm wide. Every organ contributes the length of
the X-ray beam inside it: ellipsoids and tubes have closed forms, a rib is a tilted ring whose two halves project to
the posterior and the anterior rib. The film is the logarithm of a Poisson count with scatter and a detector's blur.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import ndimage

Side = Literal["left", "right"]
FILM_MM = 360.0
ROWS_ABOVE = 0.46  # share of the film above the carina

# Linear attenuation, 1/cm, of a 120 kV beam behind the patient.
MU_SOFT, MU_LUNG, MU_BONE, MU_MARROW = 0.185, 0.045, 0.48, 0.24


@dataclass(frozen=True)
class Findings:
    """What the film shall show. Nodules and opacities are a side each; several on one side are allowed."""

    cardiomegaly: bool = False
    """heart wider than half of the chest"""
    effusion: Side | None = None
    """fluid in the pleural space, with its meniscus"""
    nodules: tuple[Side, ...] = ()
    """round, sharp, 8 to 17 mm in radius"""
    opacities: tuple[Side, ...] = ()
    """patchy air-space consolidation, 20 to 38 mm in radius"""

    @property
    def normal(self) -> bool:
        return self == Findings()


@dataclass(frozen=True)
class Film:
    """A film with what is known about it."""

    image: np.ndarray
    """(size, size) uint8, bone white"""
    truth: dict
    """`cardiothoracic_ratio`; `cardiomegaly`; `effusion`; `nodules` and `opacities`, a list of dicts with `side`,
    `row`, `column` (pixels), `radius` (pixels)"""
    report: str
    """one or more sentences, as a radiologist would dictate them"""
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    """bool (size, size): `right lung`, `left lung`, `heart`"""


def random_findings(rng: np.random.Generator, healthy: float = 0.3) -> Findings:
    """Findings of one patient: none with the probability `healthy`, else any combination of at least one."""
    if rng.random() < healthy:
        return Findings()
    sides = ("left", "right")
    while True:
        masses = tuple(sides[k] for k in rng.integers(0, 2, rng.choice([0, 1, 2, 3], p=[0.4, 0.35, 0.15, 0.1])))
        nodular = rng.random() < 0.6
        found = Findings(
            cardiomegaly=bool(rng.random() < 0.4),
            effusion=sides[rng.integers(2)] if rng.random() < 0.35 else None,
            nodules=masses if nodular else (),
            opacities=() if nodular else masses[:2],
        )
        if not found.normal:
            return found


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _tube_length(distance: np.ndarray, radius: float) -> np.ndarray:
    """Length of a beam in a tube (or ball) across it, at a distance from its axis (centre)."""
    return 2 * np.sqrt(np.maximum(radius * radius - distance * distance, 0))


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, mode="wrap")
    return noise / noise.std()


class _Patient:
    """Random proportions of one patient and the grid of the film."""

    def __init__(self, rng: np.random.Generator, pixels: int, findings: Findings):
        self.rng, self.pixels = rng, pixels
        self.mm = FILM_MM / pixels
        tilt, scale = rng.normal(0, 0.025), rng.uniform(0.93, 1.06)
        columns = (np.arange(pixels, dtype=np.float32) + 0.5) * self.mm - FILM_MM / 2 - rng.normal(0, 5)
        rows = (np.arange(pixels, dtype=np.float32) + 0.5) * self.mm - ROWS_ABOVE * FILM_MM - rng.normal(0, 6)
        self.x = ((columns[None] * np.cos(tilt) - rows[:, None] * np.sin(tilt)) / scale).astype(np.float32)
        self.y = ((columns[None] * np.sin(tilt) + rows[:, None] * np.cos(tilt)) / scale).astype(np.float32)
        self.scale, self.tilt = scale, tilt
        self.half_chest = rng.uniform(122, 136)  # inner half width of the rib cage
        self.apex = rng.uniform(-128, -114)
        self.dome = {"right": rng.uniform(88, 104)}  # height of the diaphragm; the left one is lower
        self.dome["left"] = self.dome["right"] + rng.uniform(6, 16)
        self.depth = rng.uniform(190, 240)  # of the body, front to back
        self.heart_ratio = rng.uniform(0.57, 0.68) if findings.cardiomegaly else rng.uniform(0.40, 0.47)

    def lung(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Beam length in the lung, mm, without what lies in front of it, and 0 to 1 the depth below the dome."""
        sign = 1 if side == "left" else -1
        u = sign * self.x
        inner, outer = 14.0, self.half_chest - 3
        # The lung narrows towards its apex; below it bulges out to the ribs.
        height = np.clip((self.y - self.apex) / (40 - self.apex), 0, 1)
        outline = np.sqrt(np.maximum(1 - (1 - height) ** 2.2, 0))
        right_edge = inner + 14 + (outer - inner - 14) * outline
        left_edge = inner + 12 * np.clip((20 - np.abs(self.y + 8)) / 40, 0, 1) + 10 * (1 - outline) ** 2
        middle, half = (right_edge + left_edge) / 2, np.maximum((right_edge - left_edge) / 2, 1)
        across = np.clip(np.abs(u - middle) / half, 0, 1)
        thickness = 0.74 * self.depth * np.sqrt(outline) * np.sqrt(np.maximum(1 - across**3.4, 0))
        dome = self.dome[side] + 34 * ((u - 62) / (self.half_chest - 62)) ** 2 * np.where(u > 62, 1.1, 0.35)
        below = (self.y - dome) / 24
        # Behind the dome the recess still holds a little lung.
        thickness = thickness * (0.9 * (1 - _sigmoid(below * 9)) + 0.1 * (1 - _sigmoid((below - 0.9) * 5)))
        return np.where(self.y > self.apex, thickness, 0).astype(np.float32), below

    def heart(self) -> tuple[np.ndarray, float]:
        """Beam length in the heart and the great vessels at its base, mm, and the cardiothoracic ratio."""
        width = self.heart_ratio * 2 * self.half_chest
        right = self.rng.uniform(0.30, 0.36) * width  # share that lies right of the midline
        centre_x = width / 2 - right
        low = self.dome["left"] - 8
        half_height = 0.40 * width + 16
        centre_y = low - 0.60 * half_height
        angle = np.deg2rad(self.rng.uniform(30, 42))  # of the long axis, down to the left
        dx, dy = self.x - centre_x, self.y - centre_y
        along, across = dx * np.cos(angle) + dy * np.sin(angle), -dx * np.sin(angle) + dy * np.cos(angle)
        # Half axes such that the projected half width is width / 2.
        b = 0.74 * width / 2
        a = np.sqrt(((width / 2) ** 2 - (b * np.sin(angle)) ** 2) / np.cos(angle) ** 2)
        inside = np.maximum(1 - (along / a) ** 2 - (across / b) ** 2, 0)
        length = 0.52 * width * np.sqrt(inside) * 1.35
        base = _tube_length(np.maximum(np.abs(self.x - 3), 0), 31) * _sigmoid((self.y + 75) / 5)
        base = base * (1 - _sigmoid((self.y - centre_y) / 8))
        knuckle = _tube_length(np.hypot(self.x - 26, self.y + 38), self.rng.uniform(12, 16))
        aorta = _tube_length(np.abs(self.x - 19 - 4 * np.sin(self.y / 50)), 12) * _sigmoid((self.y + 38) / 4) * 0.8
        return np.maximum(np.maximum(length, base), knuckle) + 0.5 * aorta, float(width / 2 / self.half_chest)

    def bones(self) -> tuple[np.ndarray, np.ndarray]:
        """Beam length in cortical and in spongy bone, mm: ribs, clavicles, shoulder blades, spine."""
        rng, x, y = self.rng, self.x, self.y
        cortex, marrow = np.zeros_like(x), np.zeros_like(x)
        drop, spacing = rng.uniform(42, 54), rng.uniform(23, 26)  # of half a rib ring; from rib to rib
        first = self.apex + rng.uniform(-2, 6)
        radius, wall = rng.uniform(5.2, 6.4), 1.9
        width = self.half_chest + 3
        narrowing = np.sqrt(np.clip(1 - ((20 - np.minimum(y, 20)) / 190) ** 2.4, 0.05, 1))
        u = np.abs(x) / (width * narrowing)
        root = np.sqrt(np.maximum(1 - u * u, 0))
        slope = drop * u / np.maximum(root, 0.12) / (width * narrowing)
        oblique = np.minimum(np.sqrt(1 + (slope * 1.0) ** 2), 3.5)
        for half, strength in ((-1, 1.0), (1, 0.7)):  # posterior, then anterior
            centre = (y - first - drop * (1 + half * root)) / spacing
            number = np.round(centre)
            distance = np.abs(centre - number) * spacing / np.sqrt(1 + slope * slope)
            shown = (u < 1) & (number >= 0) & (number <= (9 if half < 0 else 6))
            shown &= np.abs(x) > (20 if half < 0 else 46 + 5 * np.clip(number, 0, 6))
            outer, inner = _tube_length(distance, radius), _tube_length(distance, radius - wall)
            cortex += strength * shown * (outer - inner) * oblique
            marrow += strength * shown * inner * oblique
        for side in (-1, 1):
            u = side * x
            clavicle = -88 - 26 * np.clip((u - 14) / 130, 0, 1) + 9 * np.sin((u - 14) / 23) + rng.normal(0, 2)
            distance = np.abs(y - clavicle) / 1.12
            ends = _sigmoid((u - 14) / 2) * (1 - _sigmoid((u - 152) / 2))
            outer, inner = _tube_length(distance, 6.5), _tube_length(distance, 4.6)
            cortex += 1.3 * (outer - inner) * ends
            marrow += inner * ends
            # Shoulder blade: a thin plate with a thicker inner border, lateral to the lung's upper half.
            border = 104 + 0.16 * (y + 60) + rng.normal(0, 3)
            plate = _sigmoid((u - border) / 2) * _sigmoid((y + 98) / 5) * (1 - _sigmoid((y - 18 + 0.35 * u) / 6))
            cortex += plate * (1.6 + 3.2 * np.exp(-(((u - border - 3) / 3.5) ** 2)))
            head = _tube_length(np.hypot(u - 163, y + 88), 24)
            marrow += 0.7 * head
            cortex += 2.5 * (head > 0)
        vertebra = np.abs(np.mod((y + 200) / rng.uniform(23, 25) + rng.random(), 1) - 0.5)
        body = _sigmoid((19 - np.abs(x)) / 1.5) * (0.25 + 0.75 * _sigmoid((0.40 - vertebra) / 0.02))
        marrow += 16 * body
        cortex += 3.5 * body * (np.exp(-(((np.abs(x) - 18) / 2) ** 2)) + np.exp(-(((vertebra - 0.4) / 0.05) ** 2)))
        pedicle = np.exp(-(((np.abs(x) - 12) / 3.2) ** 2) - ((vertebra - 0.08) / 0.1) ** 2)
        cortex += 3 * pedicle
        return cortex, marrow

    def vessels(self) -> np.ndarray:
        """Beam length in lung vessels, mm: from each hilum outwards, thinner and more of them at each fork."""
        length = np.zeros_like(self.x)
        for side in (-1, 1):
            hilum = np.array([side * 34.0, 2.0 if side < 0 else -8.0])
            tips = [(hilum, angle, 5.6) for angle in self.rng.normal(np.linspace(-1.25, 1.35, 6), 0.12)]
            for step in (20.0, 22.0, 22.0):
                grown = []
                for start, angle, radius in tips:
                    end = start + step * self.rng.uniform(0.8, 1.3) * np.array([side * np.cos(angle), np.sin(angle)])
                    self._segment(length, start, end, radius)
                    fork = self.rng.uniform(0.2, 0.5)
                    grown += [(end, angle + fork, 0.66 * radius), (end, angle - fork, 0.66 * radius)]
                tips = grown
        return length

    def _segment(self, length: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> None:
        """Adds one vessel, in the box that it covers."""
        low, high = np.minimum(start, end) - radius - 6, np.maximum(start, end) + radius + 6
        centre = np.array([self.pixels / 2, ROWS_ABOVE * self.pixels])
        first = np.clip((low * self.scale / self.mm + centre - 12 / self.mm).astype(int), 0, self.pixels)
        last = np.clip((high * self.scale / self.mm + centre + 12 / self.mm).astype(int) + 1, 0, self.pixels)
        box = (slice(first[1], last[1]), slice(first[0], last[0]))
        x, y = self.x[box] - start[0], self.y[box] - start[1]
        along = end - start
        t = np.clip((x * along[0] + y * along[1]) / (along @ along), 0, 1)
        np.maximum(length[box], _tube_length(np.hypot(x - t * along[0], y - t * along[1]), radius), out=length[box])

    def place(self, side: str, radius: float, taken: list) -> tuple[float, float]:
        """A place for something of that radius in a lung, away from the heart, from others and from the edge."""
        sign = 1 if side == "left" else -1
        for _ in range(60):
            u = self.rng.uniform(40 + radius, self.half_chest - 14 - 0.8 * radius)
            v = self.rng.uniform(self.apex + 34 + radius, self.dome[side] - 14 - radius)
            high = (v - self.apex) / (40 - self.apex)
            if high < 1 and u > 18 + (self.half_chest - 24) * np.sqrt(max(1 - (1 - high) ** 2.2, 0)) - radius:
                continue
            if side == "left" and v > 20 and u < self.heart_ratio * 1.36 * self.half_chest + radius:
                continue
            if all(np.hypot(sign * u - a, v - b) > radius + r + 6 for a, b, r in taken):
                break
        return sign * u, v

    def to_pixels(self, x: float, y: float) -> tuple[float, float]:
        """Row and column on the film nearest to a place in the patient."""
        nearest = int(np.argmin((self.x - x) ** 2 + (self.y - y) ** 2))
        return divmod(nearest, self.pixels)


def simulate(rng: np.random.Generator | int, findings: Findings | None = None, size: int = 256) -> Film:
    """One film of one random adult.

    Args:
        rng: generator, or a seed. The film is a function of it, of `findings` and of `size`.
        findings: what to show; None draws them by `random_findings`.
        size: pixels along each side; the anatomy is drawn at twice that below 256.

    Returns:
        image, truth, report and masks; see `Film`.

    Example:
        >>> film = simulate(0, Findings(cardiomegaly=True), size=64)
        >>> film.image.shape, film.truth["cardiothoracic_ratio"] > 0.5
        ((64, 64), True)
    """
    rng = np.random.default_rng(rng)
    findings = random_findings(rng) if findings is None else findings
    factor = 2 if size < 256 else 1
    patient = _Patient(rng, size * factor, findings)
    x, y = patient.x, patient.y

    # Body: chest with arms away, shoulders, neck.
    neck = _sigmoid((58 - np.abs(x)) / 4)
    trunk = np.sqrt(np.maximum(1 - (np.abs(x) / (patient.half_chest + rng.uniform(30, 46))) ** 3.2, 0))
    shoulder = -146 + 0.42 * np.maximum(np.abs(x) - 45, 0) + 0.0012 * np.maximum(np.abs(x) - 45, 0) ** 2
    body = patient.depth * trunk * np.sqrt(np.clip((y - shoulder) / 60, 0, 1))
    arms = 1 - ((np.abs(x) - 158) / 62) ** 2 - ((y + 40) / 78) ** 2
    body = np.maximum(body, 125 * np.sqrt(np.maximum(arms, 0)))
    body = np.maximum(body, 118 * neck * np.sqrt(np.maximum(1 - (x / 60) ** 2, 0)))
    heart, ratio = patient.heart()
    lungs = {side: patient.lung(side) for side in ("right", "left")}
    masks = {f"{side} lung": air > 30 for side, (air, _) in lungs.items()}
    vessels = patient.vessels()

    air = np.zeros_like(x)
    extra = np.zeros_like(x)  # soft tissue that findings add to the lung
    truth: dict = {"cardiothoracic_ratio": round(ratio, 3), "cardiomegaly": findings.cardiomegaly}
    truth |= {"effusion": findings.effusion, "nodules": [], "opacities": []}
    taken: list = []
    for kind, sides in (("nodules", findings.nodules), ("opacities", findings.opacities)):
        for side in sides:
            radius = rng.uniform(8, 17) if kind == "nodules" else rng.uniform(20, 38)
            a, b = patient.place(side, radius, taken)
            taken.append((a, b, radius))
            distance = np.hypot(x - a, y - b)
            if kind == "nodules":
                extra += 1.6 * _tube_length(distance + 0.7 * _smooth_noise(rng, x.shape, 3 / patient.mm), radius)
            else:
                ragged = distance + 0.25 * radius * _smooth_noise(rng, x.shape, 9 / patient.mm)
                mottled = 0.8 + 0.13 * _smooth_noise(rng, x.shape, 4 / patient.mm)
                extra += 62 * _sigmoid((radius - ragged) / 4) * np.maximum(mottled, 0)
            row, column = patient.to_pixels(a, b)
            pixels = radius * patient.scale / patient.mm / factor
            place = {"side": side, "row": row / factor, "column": column / factor, "radius": round(pixels, 2)}
            truth[kind].append(place)
    for side, (thickness, _) in lungs.items():
        thickness = np.maximum(thickness - heart * 1.15 * (np.abs(x) < 200), 0)
        if side == findings.effusion:
            u = np.abs(x)
            level = patient.dome[side] - rng.uniform(25, 62)
            meniscus = level - 30 * np.clip((u - 60) / (patient.half_chest - 60), 0, 1.2) ** 2.5
            thickness = thickness * (1 - 0.93 * _sigmoid((y - meniscus) / 4))
        air += thickness
    extra = np.minimum(extra + 1.3 * np.minimum(vessels, air / 2), 0.92 * air)
    trachea = _tube_length(np.abs(x + 1), 8.5) * (1 - _sigmoid((y + 6) / 3)) * (y > -175)
    for sign, steep in ((-1, 1.5), (1, 0.9)):
        u = sign * x
        bronchus = _tube_length(np.abs(y + 4 - steep * u) / np.hypot(1, steep), 5.5)
        trachea = np.maximum(trachea, bronchus * (u > 0) * (u < 26))
    stomach = np.hypot((x - 62) / 30, (y - patient.dome["left"] - 26) / 15)
    bubble = rng.uniform(25, 60) * _sigmoid((1 - stomach) * 9) * (rng.random() < 0.7)
    texture = 1 + 0.05 * _smooth_noise(rng, x.shape, 2.2 / patient.mm)
    cortex, marrow = patient.bones()

    breast = rng.uniform(0, 32) * (rng.random() < 0.5)
    soft = body + sum(
        breast * np.sqrt(np.maximum(1 - ((s * x - 74) / 58) ** 2 - ((y - 62) / 52) ** 2, 0)) for s in (-1, 1)
    )
    gas = (air - extra) * np.where(air > 0, texture, 1)
    attenuation = MU_SOFT * np.maximum(soft - air - trachea - bubble, 0) + MU_LUNG * gas + MU_SOFT * extra
    attenuation += (MU_BONE - MU_SOFT) * cortex * (body > 20) + (MU_MARROW - MU_SOFT) * marrow * (body > 20)
    film = _expose(attenuation / 10, rng, patient.mm)  # mm to cm

    def shrink(values: np.ndarray) -> np.ndarray:
        return values.reshape(size, factor, size, factor).mean(axis=(1, 3))

    film = shrink(film)
    # Digital films are shown with their coarse contrast compressed, so that lungs and mediastinum fit one window.
    coarse = ndimage.gaussian_filter(film, 28 * size / FILM_MM, mode="nearest")
    film = film - 0.5 * coarse
    low, high = np.quantile(film, (0.02, 0.998))
    image = np.clip((film - low) / max(high - low, 1e-6), 0, 1) ** rng.uniform(0.9, 1.2)
    masks["heart"] = heart > 45
    masks = {name: shrink(mask.astype(np.float32)) > 0.5 for name, mask in masks.items()}
    return Film((255 * image).round().astype(np.uint8), truth, report(findings), masks)


def _expose(attenuation: np.ndarray, rng: np.random.Generator, mm: float) -> np.ndarray:
    """Minus the logarithm of what a detector counts behind the patient: scatter, blur, Poisson noise."""
    primary = np.exp(-attenuation)
    scatter = rng.uniform(0.25, 0.4) * ndimage.gaussian_filter(primary, 18 / mm, mode="nearest")
    photons = rng.uniform(2e5, 6e5) * mm * mm
    counts = rng.poisson(photons * ndimage.gaussian_filter(primary + scatter, 0.5 / mm))
    return -np.log(np.maximum(counts, 1) / photons)


def report(findings: Findings) -> str:
    """Sentences that state the findings and what is normal."""
    sentences = ["Enlarged cardiac silhouette." if findings.cardiomegaly else "Normal heart size."]
    if findings.effusion:
        sentences.append(f"{findings.effusion.capitalize()} pleural effusion.")
    for name, sides in (("nodule", findings.nodules), ("opacity", findings.opacities)):
        for side in ("right", "left"):
            count = sides.count(side)
            if count:
                plural = {"nodule": "nodules", "opacity": "opacities"}[name] if count > 1 else name
                number = {1: "One", 2: "Two", 3: "Three"}.get(count, str(count))
                sentences.append(f"{number} {plural} in the {side} lung.")
    if not findings.effusion and not findings.nodules and not findings.opacities:
        sentences.append("Clear lungs.")
    return " ".join(sentences)
