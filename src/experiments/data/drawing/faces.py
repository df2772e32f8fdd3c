"""Synthetic images of animal faces, each drawn from its own random generator."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image

from experiments.data.drawing.scene import OVERSAMPLING, background, object_in_front, photograph
from experiments.data.drawing.shapes import (
    CIRCLE,
    DARK_IRISES,
    INK,
    IRISES,
    TURN,
    Choices,
    Colour,
    HeadCanvas,
    curve,
    darker,
    lighter,
    mix,
    oval,
)
from experiments.data.drawing.species import SPECIES, Range, Species


def draw_face(species: str, rng: np.random.Generator, size: int) -> Image.Image:
    """Draw one face of the species, RGB, [size, size]; the generator determines everything else."""
    random = Choices(rng)
    side = size * OVERSAMPLING
    image = background(random, side)
    scale = random.uniform(0.8, 1.06)
    slack = max(0.0, 1.0 - scale) * 0.3 + 0.03
    centre = (side * (0.5 + random.uniform(-slack, slack)), side * (0.54 + random.uniform(-slack, slack)))
    tilt = math.radians(float(np.clip(random.rng.normal(0, 8), -25, 25)))
    yaw, contour = random.uniform(-0.4, 0.4), random.uniform(0.025, 0.06)
    _face(HeadCanvas(image, centre, side * scale * 0.36, tilt, yaw, contour), random, SPECIES[species])
    object_in_front(image, random, side)
    return photograph(image, random, size)


def _face(canvas: HeadCanvas, random: Choices, species: Species) -> None:
    """Draw the whole head, from back to front."""
    coat, second = random.coat(), random.coat()
    wide, taper = random.uniform(*species.head_width), random.uniform(*species.taper)
    if random.chance(0.6):
        canvas.oval(random.uniform(-0.3, 0.3), 1.25, wide * random.uniform(0.7, 1.1), 0.9, darker(coat, 0.12), -0.3)
    if random.chance(species.mane):
        _mane(canvas, random, mix(coat, second if random.chance(0.5) else INK, 0.4), wide)
    if random.chance(species.horns):
        _horns(canvas, random, wide)
    ears = random.kind(species.ears)
    ear_coat = second if random.chance(0.25) else darker(coat, random.uniform(0.0, 0.25))
    length, breadth = random.uniform(*species.ear_length), random.uniform(*species.ear_width)
    hanging = ears in ("floppy", "lop")
    if not hanging:
        _ears(canvas, random, ears, length, breadth, wide, ear_coat)
    _skull(canvas, random, coat, wide, taper, ruff=random.chance(species.ruff))
    _markings(canvas, random, coat, second, stripes=random.chance(species.stripes))
    if hanging:
        _ears(canvas, random, ears, length, breadth, wide, ear_coat)
    _eyes(canvas, random, species, coat)
    _snout(canvas, random, species, coat)


def _skull(canvas: HeadCanvas, random: Choices, coat: Colour, wide: float, taper: float, *, ruff: bool) -> None:
    """Draw the head's furry outline and strokes of fur on it."""
    angle = np.linspace(0.0, 2.0 * math.pi, 72, endpoint=False)
    tufts = 1.0 + random.uniform(0.01, 0.04) * random.rng.standard_normal(72)
    if ruff:
        tufts[1::2] += 0.26 * np.exp(-(((np.abs(angle[1::2] - math.pi) - 1.0) / 0.35) ** 2))
    x, y = np.sin(angle) * tufts * wide, -np.cos(angle) * tufts * 0.92
    outline = np.stack([x * (1.0 - taper * (y + 0.4).clip(0.0)), y], axis=1)
    canvas.shape(outline, coat)
    canvas.edge(outline, darker(coat, 0.7))
    strokes = random.integer(20, 70)
    start = random.rng.uniform(-1, 1, (strokes, 2))
    start *= 0.8 / np.maximum(1.0, np.hypot(start[:, 0], start[:, 1]))[:, None]
    end = start * (1.12, 1.12) + (0.0, 0.05)
    fur = darker(coat, random.uniform(0.06, 0.22)) if random.chance(0.6) else lighter(coat, random.uniform(0.08, 0.3))
    places = np.array(canvas.place(np.concatenate([start, end], axis=1).reshape(-1, 2), 0.2)).reshape(-1, 4)
    for place in places.tolist():
        canvas.draw.line(place, fill=fur, width=canvas.width(0.015))


def _mane(canvas: HeadCanvas, random: Choices, colour: Colour, wide: float) -> None:
    angle = np.linspace(0.0, 2.0 * math.pi, 56, endpoint=False)
    for reach, shade in ((1.42, 0.15), (1.22, 0.0)):
        tufts = reach + 0.09 * random.rng.standard_normal(56)
        tufts[::2] += 0.12
        points = np.stack([np.sin(angle) * tufts * wide, -np.cos(angle) * tufts], axis=1)
        canvas.shape(points, darker(colour, shade), -0.15)


def _horns(canvas: HeadCanvas, random: Choices, wide: float) -> None:
    reach, lift = random.uniform(0.25, 0.55), random.uniform(0.3, 0.6)
    colour = lighter((190, 170, 130), random.uniform(0.0, 0.6))
    for sign in (-1, 1):
        root, tip = sign * wide * 0.5, (sign * (wide * 0.5 + reach), -0.85 - lift)
        bend = (sign * (wide * 0.55 + reach), -0.75)
        outer = curve((root, -0.6), bend, tip)
        inner = curve(tip, (bend[0] - sign * 0.22, bend[1] - 0.12), (root - sign * 0.06, -0.9))
        canvas.shape(np.concatenate([outer, inner]), colour, -0.1)


# For each kind of ear: position of its root (fraction of the head's width, height) and angle (degrees from upright).
_ROOTS: Mapping[str, tuple[Range, Range, Range]] = {
    "pointed": ((0.5, 0.64), (-0.66, -0.52), (8, 34)),
    "half": ((0.52, 0.68), (-0.62, -0.5), (14, 42)),
    "floppy": ((0.66, 0.84), (-0.66, -0.46), (138, 172)),
    "round": ((0.62, 0.78), (-0.72, -0.56), (34, 52)),
    "long": ((0.3, 0.46), (-0.8, -0.68), (-4, 24)),
    "lop": ((0.6, 0.76), (-0.72, -0.56), (150, 176)),
    "side": ((0.82, 0.96), (-0.48, -0.3), (72, 112)),
    "tuft": ((0.52, 0.68), (-0.7, -0.58), (14, 42)),
}


def _ears(
    canvas: HeadCanvas, random: Choices, kind: str, length: float, breadth: float, wide: float, coat: Colour
) -> None:
    """Draw both ears, with small random differences between them."""
    (across, height, points_to) = (random.uniform(*limits) for limits in _ROOTS[kind])
    skin = mix(lighter(coat, 0.25), (226, 150, 146), random.uniform(0.2, 0.8))
    inside, line = random.chance(0.75), darker(coat, 0.7)
    for sign in (-1, 1):
        lean = math.radians(points_to + random.uniform(-9, 9))
        along = np.array([sign * math.sin(lean), -math.cos(lean)])
        aside = np.array([math.cos(lean), sign * math.sin(lean)])
        root = np.array([sign * across * wide, height]) - 0.12 * along
        reach = length * random.uniform(0.92, 1.08) + 0.12

        axes = np.stack([aside * breadth, along * reach])  # ear units (across, along) -> head units
        outline = _ear_outline(kind, random)
        canvas.shape(root + outline @ axes, coat, -0.1)
        canvas.edge(root + outline @ axes, line, -0.1)
        if inside and kind not in ("tuft", "floppy", "lop"):
            canvas.shape(root + (outline * 0.66 + (0.0, 0.1)) @ axes, skin, -0.1)
        if kind == "half":
            tip = (0.3 * sign + random.uniform(-0.3, 0.3), random.uniform(0.0, 0.2))
            fold = root + np.array([(-0.62, 0.52), (0.62, 0.56), tip]) @ axes
            canvas.shape(fold, darker(coat, 0.16), -0.05)
            canvas.edge(fold, line, -0.05)


def _ear_outline(kind: str, random: Choices) -> np.ndarray:
    """Return an ear's outline [N, 2]: across in -1..1, along from 0 (root) to 1 (tip)."""
    if kind in ("pointed", "tuft", "half"):
        belly = random.uniform(0.75, 1.05)
        up = curve((-1.0, 0.0), (-belly, 0.5), (random.uniform(-0.12, 0.12), 1.0))
        down = curve((float(up[-1, 0]), 1.0), (belly, 0.5), (1.0, 0.0))
        whole = np.concatenate([up, down])
        return np.minimum(whole, (1.0, 0.56)) if kind == "half" else whole
    if kind == "round":
        return CIRCLE * (0.95, 0.55) + (0.0, 0.5)
    heavy = 0.55 if kind in ("floppy", "lop") else 0.42
    along = 0.5 - 0.5 * np.cos(TURN)
    return np.stack([np.sin(TURN) * (0.62 + heavy * along), along], axis=1)


def _markings(canvas: HeadCanvas, random: Choices, coat: Colour, second: Colour, *, stripes: bool) -> None:
    """Draw patches, blaze, pale chin, tabby stripes and freckles, each at random, whatever the coat."""
    if random.chance(0.2):
        x, y = random.uniform(-0.45, 0.45), random.uniform(-0.45, 0.1)
        across, down = random.uniform(0.2, 0.38), random.uniform(0.22, 0.4)
        canvas.oval(x, y, across, down, second, 0.3, random.uniform(-0.6, 0.6))
    if random.chance(0.25):
        pale, width = lighter(coat, random.uniform(0.3, 0.8)), random.uniform(0.06, 0.16)
        canvas.shape(np.array([(-width, -0.85), (width, -0.85), (width * 2.6, 0.6), (-width * 2.6, 0.6)]), pale, 0.4)
    if random.chance(0.3):
        across, down = random.uniform(0.45, 0.62), random.uniform(0.28, 0.36)
        canvas.oval(0.0, 0.48, across, down, lighter(coat, random.uniform(0.2, 0.7)), 0.3)
    if stripes:
        dark, width = darker(coat, random.uniform(0.3, 0.6)), random.uniform(0.04, 0.075)
        for x in np.linspace(-0.4, 0.4, random.integer(3, 6)).tolist():
            canvas.line(curve((x, -0.82 + 0.3 * x * x), (x * 0.9, -0.6), (x * 0.6, -0.38)), dark, width, 0.25)
        for sign in (-1, 1):
            for y in (-0.02, 0.18, 0.36)[: random.integer(1, 4)]:
                canvas.line(curve((sign * 0.92, y - 0.08), (sign * 0.8, y + 0.06), (sign * 0.62, y)), dark, width)
    if random.chance(0.12):
        for _ in range(random.integer(5, 14)):
            dot = random.uniform(0.02, 0.05)
            canvas.oval(random.uniform(-0.6, 0.6), random.uniform(-0.6, 0.5), dot, dot, darker(coat, 0.35), 0.3)


def _eyes(canvas: HeadCanvas, random: Choices, species: Species, coat: Colour) -> None:
    reach, gap = random.uniform(*species.eye_size), random.uniform(*species.eye_gap)
    height = random.uniform(-0.22, -0.04)
    iris = random.choice(IRISES if random.chance(species.bright_iris) else DARK_IRISES)
    iris = mix(iris, random.colour(), 0.15)
    pupil = random.kind(species.pupil)
    open_by = random.uniform(0.78, 1.05)
    across, down = {
        "slit": (random.uniform(0.14, 0.3), 0.92),
        "round": (random.uniform(0.45, 0.72),) * 2,
        "bar": (0.8, 0.3),
    }[pupil]
    lean, look = random.uniform(-0.25, 0.25), random.uniform(-0.15, 0.15)
    rim = darker(coat, random.uniform(0.5, 0.85))
    wink = random.integer(0, 2) if random.chance(0.04) else None
    for number, sign in enumerate((-1, 1)):
        x = sign * gap
        if number == wink:
            canvas.line(curve((x - reach, height), (x, height + reach), (x + reach, height)), rim, 0.05, 0.35)
            continue
        canvas.oval(x, height, reach * 1.16, reach * 1.16 * open_by, rim, 0.35, sign * lean)
        canvas.oval(x, height, reach, reach * open_by, iris, 0.35, sign * lean)
        seen = x + look * reach
        canvas.oval(seen, height, reach * across, reach * down * open_by, INK, 0.35)
        canvas.oval(seen - reach * 0.3, height - reach * 0.36, reach * 0.2, reach * 0.2, (250, 250, 246), 0.35)
    if random.chance(0.3):
        for sign in (-1, 1):
            x, y = sign * gap, height - reach * 1.5
            brow = curve((x - reach, y + 0.04), (x, y - 0.1), (x + reach, y + 0.04))
            canvas.line(brow, darker(coat, 0.4), 0.04, 0.35)


def _snout(canvas: HeadCanvas, random: Choices, species: Species, coat: Colour) -> None:
    """Draw muzzle, nose, mouth and whiskers."""
    kind, nose = random.kind(species.muzzle), random.kind(species.nose)
    reach = random.uniform(*species.nose_size)
    pale = lighter(coat, random.uniform(0.1, 0.6)) if random.chance(0.75) else darker(coat, random.uniform(0.1, 0.3))
    leather = darker(coat, 0.85) if random.chance(0.75) else mix((214, 130, 128), coat, random.uniform(0.0, 0.4))
    top = random.uniform(0.2, 0.3)
    line = darker(coat, random.uniform(0.55, 0.85))
    if kind == "beak":
        _beak(canvas, random, pale, reach, top)
        return
    if kind == "disc":
        _disc(canvas, random, coat, line, reach, top)
        return
    mouth, tip = _muzzle(canvas, random, kind, pale, reach, top)
    depth = 0.5 + 0.12 if kind == "long" else 0.5
    if random.chance(species.tongue):
        canvas.oval(random.uniform(-0.06, 0.06), mouth + 0.2, 0.11, random.uniform(0.14, 0.24), (222, 110, 116), depth)
    if random.chance(species.teeth):
        corners = np.array([(-0.07, 0.1), (0.07, 0.1), (0.06, 0.24), (-0.06, 0.24)])
        canvas.shape(corners + (0.0, mouth), (246, 242, 226), depth)
    if nose == "triangle":
        corners = np.array([(-1.0, -0.5), (-0.5, -0.75), (0.5, -0.75), (1.0, -0.5), (0.15, 0.7), (-0.15, 0.7)])
        canvas.shape(corners * reach + (0.0, tip), leather, depth)
    elif nose == "oval":
        canvas.oval(0.0, tip, reach * 1.15, reach * 0.85, leather, depth)
        canvas.oval(-reach * 0.3, tip - reach * 0.4, reach * 0.35, reach * 0.18, lighter(leather, 0.45), depth)
    curl = random.uniform(0.1, 0.2)
    if kind != "broad":
        canvas.line(np.array([(0.0, tip + reach * 0.6), (0.0, mouth + 0.06)]), line, 0.03, depth)
    for sign in (-1, 1):
        lip = curve((0.0, mouth + 0.06), (sign * curl * 0.5, mouth + 0.2), (sign * curl * 1.6, mouth + 0.06))
        canvas.line(lip, line, 0.03, depth)
    if random.chance(species.whiskers):
        _whiskers(canvas, random, coat, top + 0.18, depth)


def _beak(canvas: HeadCanvas, random: Choices, pale: Colour, reach: float, top: float) -> None:
    for sign in (-1, 1):
        canvas.oval(sign * 0.1, top + 0.12, 0.2, 0.2, pale, 0.4)
    bill = mix((226, 170, 60), (70, 64, 60), random.uniform(0.0, 0.8))
    outline = np.array([(-reach, top - 0.14), (0.0, top - 0.24), (reach, top - 0.14), (0.0, top + 0.3)])
    canvas.shape(outline, bill, 0.5)
    canvas.line(np.array([(0.0, top - 0.2), (0.0, top + 0.26)]), darker(bill, 0.3), 0.02, 0.5)


def _disc(canvas: HeadCanvas, random: Choices, coat: Colour, line: Colour, reach: float, top: float) -> None:
    """Draw a pig's nose and its mouth."""
    skin = mix(coat, (232, 150, 150), random.uniform(0.2, 0.7))
    canvas.oval(0.0, top + 0.1, reach * 2.7, reach * 2.1, darker(skin, 0.3), 0.5)
    canvas.oval(0.0, top + 0.08, reach * 2.5, reach * 1.9, skin, 0.5 + 0.06)
    for sign in (-1, 1):
        canvas.oval(sign * reach, top + 0.08, reach * 0.42, reach * 0.75, darker(skin, 0.65), 0.5 + 0.06)
    mouth = top + 0.1 + reach * 2.1
    canvas.line(curve((-0.25, mouth + 0.05), (0.0, mouth + 0.22), (0.25, mouth + 0.05)), line, 0.03, 0.5 - 0.1)


def _muzzle(
    canvas: HeadCanvas, random: Choices, kind: str, pale: Colour, reach: float, top: float
) -> tuple[float, float]:
    """Draw a muzzle (broad, long or pads), and return the heights of the mouth and of the tip of the nose."""
    if kind == "broad":
        wide = random.uniform(0.5, 0.64)
        canvas.oval(0.0, top + 0.28, wide, 0.36, pale, 0.5)
        for sign in (-1, 1):
            canvas.oval(sign * wide * 0.5, top + 0.18, reach * 0.8, reach * 0.5, darker(pale, 0.6), 0.5, sign * 0.5)
        return top + 0.42, 0.0
    if kind == "long":
        wide = random.uniform(0.26, 0.38)
        left = curve((-0.16, top - 0.42), (-wide * 0.8, top - 0.1), (-wide, top + 0.2))
        chin = oval(0.0, top + 0.22, wide, 0.3)[7:22][::-1]
        canvas.shape(np.concatenate([left, chin, left[::-1] * (-1.0, 1.0)]), pale, 0.5)
        return top + 0.26, top
    wide = random.uniform(0.19, 0.26)
    canvas.oval(0.0, top + 0.36, wide * 0.8, 0.16, pale, 0.5 - 0.1)
    for sign in (-1, 1):
        canvas.oval(sign * wide * 0.82, top + 0.2, wide, 0.17, pale, 0.5)
    return top + 0.16, top + 0.02


def _whiskers(canvas: HeadCanvas, random: Choices, coat: Colour, height: float, depth: float) -> None:
    shade = lighter(coat, 0.75) if sum(coat) < 480 and random.chance(0.85) else darker(coat, 0.7)
    reach, droop = random.uniform(0.55, 0.95), random.uniform(-0.15, 0.15)
    for sign in (-1, 1):
        for row in range(random.integer(3, 5)):
            y = height - 0.08 + 0.07 * row
            end = (sign * (0.2 + reach * random.uniform(0.85, 1.1)), y + (row - 1.2) * 0.14 + droop)
            canvas.line(curve((sign * 0.2, y), (sign * (0.2 + reach * 0.5), y - 0.05), end, 5), shade, 0.022, depth)
