"""Synthetic images of animal faces, each drawn from its own random generator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from experiments.data.drawing.species import Range, Species, find_species

OVERSAMPLING = 2  # drawn at this multiple of the size, then averaged, since Pillow's polygons have hard edges

Colour = tuple[int, int, int]
Point = tuple[float, float]

COATS: tuple[Colour, ...] = (
    (52, 48, 52),
    (88, 84, 90),
    (138, 134, 136),
    (186, 182, 180),
    (108, 76, 54),
    (146, 94, 60),
    (206, 128, 66),
    (214, 178, 128),
    (236, 218, 186),
    (240, 236, 232),
    (118, 126, 142),
    (226, 176, 164),
)
IRISES: tuple[Colour, ...] = ((228, 186, 60), (140, 186, 80), (90, 160, 190), (206, 132, 52), (96, 190, 160))
DARK_IRISES: tuple[Colour, ...] = ((92, 60, 36), (64, 46, 36), (120, 84, 50))
INK: Colour = (34, 28, 30)

_TURN = np.linspace(0.0, 2.0 * math.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.sin(_TURN), -np.cos(_TURN)], axis=1)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return a mixture of two colours, with `share` of the second."""
    return (
        round(first[0] + (second[0] - first[0]) * share),
        round(first[1] + (second[1] - first[1]) * share),
        round(first[2] + (second[2] - first[2]) * share),
    )


def _darker(colour: Colour, share: float) -> Colour:
    return _mix(colour, (12, 8, 14), share)


def _lighter(colour: Colour, share: float) -> Colour:
    return _mix(colour, (255, 250, 244), share)


class _Hand:
    """Random choices for one image, all from one generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def happens(self, odds: float) -> bool:
        return bool(self.rng.random() < odds)

    def count(self, low: int, high: int) -> int:
        """Return a random integer from low to high - 1."""
        return int(self.rng.integers(low, high))

    def kind(self, odds: Mapping[str, float]) -> str:
        left = self.rng.random() * sum(odds.values())
        for name, share in odds.items():
            left -= share
            if left < 0:
                return name
        return name

    def one_of(self, colours: Sequence[Colour]) -> Colour:
        return colours[self.count(0, len(colours))]

    def colour(self) -> Colour:
        red, green, blue = self.rng.integers(25, 240, 3).tolist()
        return red, green, blue

    def coat(self) -> Colour:
        """Return a fur colour, with the same odds for every species."""
        red, green, blue = (np.array(self.one_of(COATS)) + self.rng.normal(0, 12, 3)).clip(20, 250).astype(int).tolist()
        return red, green, blue


class _Paper:
    """A canvas with the position, size and rotation of a head on it.

    Head units: x right, y down, the skull's radius about 1.
    """

    def __init__(
        self, canvas: Image.Image, centre: tuple[float, float], radius: float, tilt: float, yaw: float, contour: float
    ) -> None:
        self.contour = contour
        self.ink = ImageDraw.Draw(canvas)
        self.centre = np.array(centre)
        self.radius = radius
        self.yaw = yaw
        cosine, sine = math.cos(tilt) * radius, math.sin(tilt) * radius
        self.matrix = np.array([[cosine, sine], [-sine, cosine]])

    def place(self, points: np.ndarray, depth: float) -> list[float]:
        """Convert points [N, 2] in head units to pixels x0, y0, x1, y1, ... of the canvas.

        If the head is turned by `yaw`, a greater depth (nearer to the viewer) moves points further.
        """
        turned = np.array(points, dtype=float)
        across = turned[:, 0]
        turned[:, 0] = across * (1.0 - 0.22 * self.yaw * across) + self.yaw * depth
        placed: list[float] = (turned @ self.matrix + self.centre).ravel().tolist()
        return placed

    def width(self, units: float) -> int:
        return max(1, round(units * self.radius))

    def shape(self, points: np.ndarray, fill: Colour, depth: float = 0.0) -> None:
        self.ink.polygon(self.place(points, depth), fill=fill)

    def edge(self, points: np.ndarray, fill: Colour, depth: float = 0.0) -> None:
        """Draw a line around a shape."""
        self.line(np.concatenate([points, points[:1]]), fill, self.contour, depth)

    def oval(
        self, x: float, y: float, across: float, down: float, fill: Colour, depth: float = 0.0, lean: float = 0.0
    ) -> None:
        self.shape(_oval(x, y, across, down, lean), fill, depth)

    def line(self, points: np.ndarray, fill: Colour, units: float, depth: float = 0.0) -> None:
        self.ink.line(self.place(points, depth), fill=fill, width=self.width(units), joint="curve")


def _oval(x: float, y: float, across: float, down: float, lean: float = 0.0) -> np.ndarray:
    points = _CIRCLE * (across, down)
    if lean:
        cosine, sine = math.cos(lean), math.sin(lean)
        points = points @ np.array([[cosine, sine], [-sine, cosine]])
    return points + (x, y)


def _curve(start: Point, bend: Point, end: Point, steps: int = 7) -> np.ndarray:
    """Return [steps, 2] points of a quadratic Bezier curve."""
    t = np.linspace(0.0, 1.0, steps)[:, None]
    points: np.ndarray = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t**2 * np.array(end)
    return points


def draw_face(species: str, rng: np.random.Generator, size: int) -> Image.Image:
    """Draw one face of the species, RGB, [size, size]; the generator determines everything else."""
    animal = find_species(species)
    hand = _Hand(rng)
    side = size * OVERSAMPLING
    canvas = _background(hand, side)
    scale = hand.between(0.8, 1.06)
    slack = max(0.0, 1.0 - scale) * 0.3 + 0.03
    centre = (side * (0.5 + hand.between(-slack, slack)), side * (0.54 + hand.between(-slack, slack)))
    tilt = math.radians(float(np.clip(hand.rng.normal(0, 8), -25, 25)))
    paper = _Paper(canvas, centre, side * scale * 0.36, tilt, hand.between(-0.4, 0.4), hand.between(0.025, 0.06))
    _face(paper, hand, animal)
    _in_front(canvas, hand, side)
    return _photograph(canvas, hand, size)


def _background(hand: _Hand, side: int) -> Image.Image:
    """Draw a blurred room, or a plain wall, with distracting shapes.

    The shapes are no faces, but have triangles, circles and lines, as faces do.
    """
    cells = hand.count(2, 7)
    base = np.array(_lighter(_mix(hand.coat(), hand.colour(), 0.4), hand.between(0.0, 0.7)), dtype=float)
    room = base + hand.rng.normal(0, hand.between(6, 26), (cells, cells, 3))
    canvas = Image.fromarray(room.clip(10, 245).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    ink = ImageDraw.Draw(canvas)
    wall: Colour = tuple(base.astype(int).tolist())
    if hand.happens(0.25):
        _hatching(ink, hand, side, wall)
    for _ in range(hand.count(1, 8)):
        _clutter(ink, hand, side, wall)
    return canvas


def _hatching(ink: ImageDraw.ImageDraw, hand: _Hand, side: int, wall: Colour) -> None:
    """Draw a fence, blinds or wallpaper: parallel lines at one angle."""
    angle, gap = hand.between(0, math.pi), side * hand.between(0.05, 0.16)
    colour, width = _mix(wall, hand.coat(), hand.between(0.15, 0.5)), max(1, round(gap * hand.between(0.08, 0.5)))
    cosine, sine = math.cos(angle), math.sin(angle)
    for step in range(-math.ceil(0.75 * side / gap), math.ceil(0.75 * side / gap) + 1):
        x, y = side / 2 - sine * step * gap, side / 2 + cosine * step * gap
        ink.line([x - cosine * side, y - sine * side, x + cosine * side, y + sine * side], fill=colour, width=width)


def _clutter(ink: ImageDraw.ImageDraw, hand: _Hand, side: int, wall: Colour) -> None:
    """Draw one distracting shape."""
    x, y = hand.between(0, side), hand.between(0, side)
    reach = side * hand.between(0.04, 0.2)
    colour = _mix(wall, hand.coat() if hand.happens(0.7) else hand.colour(), hand.between(0.3, 0.9))
    lean = hand.between(0, 2 * math.pi)
    what = hand.kind({"triangle": 0.25, "eye": 0.2, "blob": 0.25, "line": 0.2, "tuft": 0.1})
    if what == "triangle":
        corner = np.array([(-0.5, 0.4), (0.5, 0.4), (hand.between(-0.3, 0.3), -1.0)])
        turn = np.array([[math.cos(lean), math.sin(lean)], [-math.sin(lean), math.cos(lean)]])
        ink.polygon((corner @ turn * reach + (x, y)).ravel().tolist(), fill=colour)
        if hand.happens(0.5):
            ink.polygon((corner * 0.6 @ turn * reach + (x, y)).ravel().tolist(), fill=_lighter(colour, 0.3))
    elif what == "eye":
        ink.polygon(_oval(x, y, reach * 0.4, reach * 0.4).ravel().tolist(), fill=colour)
        inner = hand.between(0.08, 0.3)
        ink.polygon(_oval(x, y, reach * inner, reach * 0.3, lean).ravel().tolist(), fill=_darker(colour, 0.7))
    elif what == "blob":
        ink.polygon(_oval(x, y, reach, reach * hand.between(0.4, 1), lean).ravel().tolist(), fill=colour)
    elif what == "line":
        far = reach * hand.between(1, 4)
        end = (x + far * math.cos(lean), y + far * math.sin(lean))
        bend = (hand.between(0, side), hand.between(0, side))
        ink.line(_curve((x, y), bend, end).ravel().tolist(), fill=colour, width=hand.count(1, 1 + max(2, side // 40)))
    else:
        for _ in range(hand.count(3, 7)):
            way = lean + hand.between(-0.4, 0.4)
            end = (x + reach * math.cos(way), y + reach * math.sin(way))
            ink.line([(x, y), end], fill=colour, width=max(1, side // 150))


def _face(paper: _Paper, hand: _Hand, animal: Species) -> None:
    """Draw the whole head, from back to front."""
    coat, second = hand.coat(), hand.coat()
    wide, taper = hand.between(*animal.head_width), hand.between(*animal.taper)
    if hand.happens(0.6):
        paper.oval(hand.between(-0.3, 0.3), 1.25, wide * hand.between(0.7, 1.1), 0.9, _darker(coat, 0.12), -0.3)
    if hand.happens(animal.mane):
        _mane(paper, hand, _mix(coat, second if hand.happens(0.5) else INK, 0.4), wide)
    if hand.happens(animal.horns):
        _horns(paper, hand, wide)
    ears = hand.kind(animal.ears)
    ear_coat = second if hand.happens(0.25) else _darker(coat, hand.between(0.0, 0.25))
    length, breadth = hand.between(*animal.ear_length), hand.between(*animal.ear_width)
    hanging = ears in ("floppy", "lop")
    if not hanging:
        _ears(paper, hand, ears, length, breadth, wide, ear_coat)
    _skull(paper, hand, coat, wide, taper, ruff=hand.happens(animal.ruff))
    _markings(paper, hand, coat, second, stripes=hand.happens(animal.stripes))
    if hanging:
        _ears(paper, hand, ears, length, breadth, wide, ear_coat)
    _eyes(paper, hand, animal, coat)
    _snout(paper, hand, animal, coat)


def _skull(paper: _Paper, hand: _Hand, coat: Colour, wide: float, taper: float, *, ruff: bool) -> None:
    """Draw the head's furry outline and strokes of fur on it."""
    angle = np.linspace(0.0, 2.0 * math.pi, 72, endpoint=False)
    tufts = 1.0 + hand.between(0.01, 0.04) * hand.rng.standard_normal(72)
    if ruff:
        tufts[1::2] += 0.26 * np.exp(-(((np.abs(angle[1::2] - math.pi) - 1.0) / 0.35) ** 2))
    x, y = np.sin(angle) * tufts * wide, -np.cos(angle) * tufts * 0.92
    outline = np.stack([x * (1.0 - taper * (y + 0.4).clip(0.0)), y], axis=1)
    paper.shape(outline, coat)
    paper.edge(outline, _darker(coat, 0.7))
    strokes = hand.count(20, 70)
    start = hand.rng.uniform(-1, 1, (strokes, 2))
    start *= 0.8 / np.maximum(1.0, np.hypot(start[:, 0], start[:, 1]))[:, None]
    end = start * (1.12, 1.12) + (0.0, 0.05)
    fur = _darker(coat, hand.between(0.06, 0.22)) if hand.happens(0.6) else _lighter(coat, hand.between(0.08, 0.3))
    places = np.array(paper.place(np.concatenate([start, end], axis=1).reshape(-1, 2), 0.2)).reshape(-1, 4)
    for place in places.tolist():
        paper.ink.line(place, fill=fur, width=paper.width(0.015))


def _mane(paper: _Paper, hand: _Hand, colour: Colour, wide: float) -> None:
    angle = np.linspace(0.0, 2.0 * math.pi, 56, endpoint=False)
    for reach, shade in ((1.42, 0.15), (1.22, 0.0)):
        tufts = reach + 0.09 * hand.rng.standard_normal(56)
        tufts[::2] += 0.12
        points = np.stack([np.sin(angle) * tufts * wide, -np.cos(angle) * tufts], axis=1)
        paper.shape(points, _darker(colour, shade), -0.15)


def _horns(paper: _Paper, hand: _Hand, wide: float) -> None:
    reach, lift = hand.between(0.25, 0.55), hand.between(0.3, 0.6)
    colour = _lighter((190, 170, 130), hand.between(0.0, 0.6))
    for sign in (-1, 1):
        root, tip = sign * wide * 0.5, (sign * (wide * 0.5 + reach), -0.85 - lift)
        bend = (sign * (wide * 0.55 + reach), -0.75)
        outer = _curve((root, -0.6), bend, tip)
        inner = _curve(tip, (bend[0] - sign * 0.22, bend[1] - 0.12), (root - sign * 0.06, -0.9))
        paper.shape(np.concatenate([outer, inner]), colour, -0.1)


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


def _ears(paper: _Paper, hand: _Hand, kind: str, length: float, breadth: float, wide: float, coat: Colour) -> None:
    """Draw both ears, with small random differences between them."""
    (across, height, points_to) = (hand.between(*limits) for limits in _ROOTS[kind])
    skin = _mix(_lighter(coat, 0.25), (226, 150, 146), hand.between(0.2, 0.8))
    inside, line = hand.happens(0.75), _darker(coat, 0.7)
    for sign in (-1, 1):
        lean = math.radians(points_to + hand.between(-9, 9))
        along = np.array([sign * math.sin(lean), -math.cos(lean)])
        aside = np.array([math.cos(lean), sign * math.sin(lean)])
        root = np.array([sign * across * wide, height]) - 0.12 * along
        reach = length * hand.between(0.92, 1.08) + 0.12

        axes = np.stack([aside * breadth, along * reach])  # ear units (across, along) -> head units
        outline = _ear_outline(kind, hand)
        paper.shape(root + outline @ axes, coat, -0.1)
        paper.edge(root + outline @ axes, line, -0.1)
        if inside and kind not in ("tuft", "floppy", "lop"):
            paper.shape(root + (outline * 0.66 + (0.0, 0.1)) @ axes, skin, -0.1)
        if kind == "half":
            tip = (0.3 * sign + hand.between(-0.3, 0.3), hand.between(0.0, 0.2))
            fold = root + np.array([(-0.62, 0.52), (0.62, 0.56), tip]) @ axes
            paper.shape(fold, _darker(coat, 0.16), -0.05)
            paper.edge(fold, line, -0.05)


def _ear_outline(kind: str, hand: _Hand) -> np.ndarray:
    """Return an ear's outline [N, 2]: across in -1..1, along from 0 (root) to 1 (tip)."""
    if kind in ("pointed", "tuft", "half"):
        belly = hand.between(0.75, 1.05)
        up = _curve((-1.0, 0.0), (-belly, 0.5), (hand.between(-0.12, 0.12), 1.0))
        down = _curve((float(up[-1, 0]), 1.0), (belly, 0.5), (1.0, 0.0))
        whole = np.concatenate([up, down])
        return np.minimum(whole, (1.0, 0.56)) if kind == "half" else whole
    if kind == "round":
        return _CIRCLE * (0.95, 0.55) + (0.0, 0.5)
    heavy = 0.55 if kind in ("floppy", "lop") else 0.42
    along = 0.5 - 0.5 * np.cos(_TURN)
    return np.stack([np.sin(_TURN) * (0.62 + heavy * along), along], axis=1)


def _markings(paper: _Paper, hand: _Hand, coat: Colour, second: Colour, *, stripes: bool) -> None:
    """Draw patches, blaze, pale chin, tabby stripes and freckles, each at random, whatever the coat."""
    if hand.happens(0.2):
        x, y = hand.between(-0.45, 0.45), hand.between(-0.45, 0.1)
        across, down = hand.between(0.2, 0.38), hand.between(0.22, 0.4)
        paper.oval(x, y, across, down, second, 0.3, hand.between(-0.6, 0.6))
    if hand.happens(0.25):
        pale, width = _lighter(coat, hand.between(0.3, 0.8)), hand.between(0.06, 0.16)
        paper.shape(np.array([(-width, -0.85), (width, -0.85), (width * 2.6, 0.6), (-width * 2.6, 0.6)]), pale, 0.4)
    if hand.happens(0.3):
        across, down = hand.between(0.45, 0.62), hand.between(0.28, 0.36)
        paper.oval(0.0, 0.48, across, down, _lighter(coat, hand.between(0.2, 0.7)), 0.3)
    if stripes:
        dark, width = _darker(coat, hand.between(0.3, 0.6)), hand.between(0.04, 0.075)
        for x in np.linspace(-0.4, 0.4, hand.count(3, 6)).tolist():
            paper.line(_curve((x, -0.82 + 0.3 * x * x), (x * 0.9, -0.6), (x * 0.6, -0.38)), dark, width, 0.25)
        for sign in (-1, 1):
            for y in (-0.02, 0.18, 0.36)[: hand.count(1, 4)]:
                paper.line(_curve((sign * 0.92, y - 0.08), (sign * 0.8, y + 0.06), (sign * 0.62, y)), dark, width)
    if hand.happens(0.12):
        for _ in range(hand.count(5, 14)):
            dot = hand.between(0.02, 0.05)
            paper.oval(hand.between(-0.6, 0.6), hand.between(-0.6, 0.5), dot, dot, _darker(coat, 0.35), 0.3)


def _eyes(paper: _Paper, hand: _Hand, animal: Species, coat: Colour) -> None:
    reach, gap, height = hand.between(*animal.eye_size), hand.between(*animal.eye_gap), hand.between(-0.22, -0.04)
    iris = hand.one_of(IRISES if hand.happens(animal.bright_iris) else DARK_IRISES)
    iris = _mix(iris, hand.colour(), 0.15)
    pupil = hand.kind(animal.pupil)
    open_by = hand.between(0.78, 1.05)
    across, down = {
        "slit": (hand.between(0.14, 0.3), 0.92),
        "round": (hand.between(0.45, 0.72),) * 2,
        "bar": (0.8, 0.3),
    }[pupil]
    lean, look = hand.between(-0.25, 0.25), hand.between(-0.15, 0.15)
    rim = _darker(coat, hand.between(0.5, 0.85))
    wink = hand.count(0, 2) if hand.happens(0.04) else None
    for number, sign in enumerate((-1, 1)):
        x = sign * gap
        if number == wink:
            paper.line(_curve((x - reach, height), (x, height + reach), (x + reach, height)), rim, 0.05, 0.35)
            continue
        paper.oval(x, height, reach * 1.16, reach * 1.16 * open_by, rim, 0.35, sign * lean)
        paper.oval(x, height, reach, reach * open_by, iris, 0.35, sign * lean)
        seen = x + look * reach
        paper.oval(seen, height, reach * across, reach * down * open_by, INK, 0.35)
        paper.oval(seen - reach * 0.3, height - reach * 0.36, reach * 0.2, reach * 0.2, (250, 250, 246), 0.35)
    if hand.happens(0.3):
        for sign in (-1, 1):
            x, y = sign * gap, height - reach * 1.5
            brow = _curve((x - reach, y + 0.04), (x, y - 0.1), (x + reach, y + 0.04))
            paper.line(brow, _darker(coat, 0.4), 0.04, 0.35)


def _snout(paper: _Paper, hand: _Hand, animal: Species, coat: Colour) -> None:
    """Draw muzzle, nose, mouth and whiskers."""
    kind, nose = hand.kind(animal.muzzle), hand.kind(animal.nose)
    reach = hand.between(*animal.nose_size)
    pale = _lighter(coat, hand.between(0.1, 0.6)) if hand.happens(0.75) else _darker(coat, hand.between(0.1, 0.3))
    leather = _darker(coat, 0.85) if hand.happens(0.75) else _mix((214, 130, 128), coat, hand.between(0.0, 0.4))
    top, depth = hand.between(0.2, 0.3), 0.5
    line = _darker(coat, hand.between(0.55, 0.85))
    if kind == "beak":
        for sign in (-1, 1):
            paper.oval(sign * 0.1, top + 0.12, 0.2, 0.2, pale, 0.4)
        bill = _mix((226, 170, 60), (70, 64, 60), hand.between(0.0, 0.8))
        outline = np.array([(-reach, top - 0.14), (0.0, top - 0.24), (reach, top - 0.14), (0.0, top + 0.3)])
        paper.shape(outline, bill, depth)
        paper.line(np.array([(0.0, top - 0.2), (0.0, top + 0.26)]), _darker(bill, 0.3), 0.02, depth)
        return
    if kind == "disc":
        skin = _mix(coat, (232, 150, 150), hand.between(0.2, 0.7))
        paper.oval(0.0, top + 0.1, reach * 2.7, reach * 2.1, _darker(skin, 0.3), depth)
        paper.oval(0.0, top + 0.08, reach * 2.5, reach * 1.9, skin, depth + 0.06)
        for sign in (-1, 1):
            paper.oval(sign * reach, top + 0.08, reach * 0.42, reach * 0.75, _darker(skin, 0.65), depth + 0.06)
        mouth = top + 0.1 + reach * 2.1
        paper.line(_curve((-0.25, mouth + 0.05), (0.0, mouth + 0.22), (0.25, mouth + 0.05)), line, 0.03, depth - 0.1)
        return
    if kind == "broad":
        wide = hand.between(0.5, 0.64)
        paper.oval(0.0, top + 0.28, wide, 0.36, pale, depth)
        for sign in (-1, 1):
            paper.oval(sign * wide * 0.5, top + 0.18, reach * 0.8, reach * 0.5, _darker(pale, 0.6), depth, sign * 0.5)
        mouth, tip = top + 0.42, 0.0
    elif kind == "long":
        wide = hand.between(0.26, 0.38)
        left = _curve((-0.16, top - 0.42), (-wide * 0.8, top - 0.1), (-wide, top + 0.2))
        chin = _oval(0.0, top + 0.22, wide, 0.3)[7:22][::-1]
        paper.shape(np.concatenate([left, chin, left[::-1] * (-1.0, 1.0)]), pale, depth)
        mouth, tip, depth = top + 0.26, top, depth + 0.12
    else:
        wide = hand.between(0.19, 0.26)
        paper.oval(0.0, top + 0.36, wide * 0.8, 0.16, pale, depth - 0.1)
        for sign in (-1, 1):
            paper.oval(sign * wide * 0.82, top + 0.2, wide, 0.17, pale, depth)
        mouth, tip = top + 0.16, top + 0.02
    if hand.happens(animal.tongue):
        paper.oval(hand.between(-0.06, 0.06), mouth + 0.2, 0.11, hand.between(0.14, 0.24), (222, 110, 116), depth)
    if hand.happens(animal.teeth):
        corners = np.array([(-0.07, 0.1), (0.07, 0.1), (0.06, 0.24), (-0.06, 0.24)])
        paper.shape(corners + (0.0, mouth), (246, 242, 226), depth)
    if nose == "triangle":
        corners = np.array([(-1.0, -0.5), (-0.5, -0.75), (0.5, -0.75), (1.0, -0.5), (0.15, 0.7), (-0.15, 0.7)])
        paper.shape(corners * reach + (0.0, tip), leather, depth)
    elif nose == "oval":
        paper.oval(0.0, tip, reach * 1.15, reach * 0.85, leather, depth)
        paper.oval(-reach * 0.3, tip - reach * 0.4, reach * 0.35, reach * 0.18, _lighter(leather, 0.45), depth)
    curl = hand.between(0.1, 0.2)
    if kind != "broad":
        paper.line(np.array([(0.0, tip + reach * 0.6), (0.0, mouth + 0.06)]), line, 0.03, depth)
    for sign in (-1, 1):
        lip = _curve((0.0, mouth + 0.06), (sign * curl * 0.5, mouth + 0.2), (sign * curl * 1.6, mouth + 0.06))
        paper.line(lip, line, 0.03, depth)
    if hand.happens(animal.whiskers):
        _whiskers(paper, hand, coat, top + 0.18, depth)


def _whiskers(paper: _Paper, hand: _Hand, coat: Colour, height: float, depth: float) -> None:
    shade = _lighter(coat, 0.75) if sum(coat) < 480 and hand.happens(0.85) else _darker(coat, 0.7)
    reach, droop = hand.between(0.55, 0.95), hand.between(-0.15, 0.15)
    for sign in (-1, 1):
        for row in range(hand.count(3, 5)):
            y = height - 0.08 + 0.07 * row
            end = (sign * (0.2 + reach * hand.between(0.85, 1.1)), y + (row - 1.2) * 0.14 + droop)
            paper.line(_curve((sign * 0.2, y), (sign * (0.2 + reach * 0.5), y - 0.05), end, 5), shade, 0.022, depth)


def _in_front(canvas: Image.Image, hand: _Hand, side: int) -> None:
    """Draw, in some images, an object that hides part of the animal: a leaf, a post or a corner."""
    if not hand.happens(0.2):
        return
    ink = ImageDraw.Draw(canvas)
    colour = hand.coat() if hand.happens(0.5) else hand.colour()
    x, y, lean = hand.between(0, side), hand.between(0, side), hand.between(0, math.pi)
    if hand.happens(0.5):
        far = (x + 2 * side * math.cos(lean), y + 2 * side * math.sin(lean))
        near = (x - 2 * side * math.cos(lean), y - 2 * side * math.sin(lean))
        ink.line([near, far], fill=colour, width=round(side * hand.between(0.03, 0.1)))
    else:
        reach = side * hand.between(0.1, 0.2)
        ink.polygon(_oval(x, y, reach, reach * hand.between(0.4, 1.0), lean).ravel().tolist(), fill=colour)


def _photograph(canvas: Image.Image, hand: _Hand, size: int) -> Image.Image:
    """Reduce the canvas to [size, size] and simulate lens and light.

    These are blur, a gradient of brightness, a shadow, contrast, colour cast and noise.
    """
    image = canvas.reduce(OVERSAMPLING)
    if hand.happens(0.3):
        image = image.filter(ImageFilter.GaussianBlur(hand.between(0.3, 1.1) * size / 150))
    rng = hand.rng
    row = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope = hand.between(0.0, 0.5)
    angle = hand.between(0, 2 * math.pi)
    ramp = slope * (math.cos(angle) * row[None, :] + math.sin(angle) * row[:, None])
    light = np.exp(ramp + hand.between(-0.25, 0.15)).astype(np.float32)
    if hand.happens(0.25):
        edge = math.cos(angle + 1.3) * row[None, :] + math.sin(angle + 1.3) * row[:, None]
        light *= 1.0 - hand.between(0.15, 0.45) / (1.0 + np.exp(-(edge - hand.between(-0.3, 0.3)) * 40))
    cast = np.exp(rng.normal(0, 0.07, 3)).astype(np.float32)
    contrast = hand.between(0.8, 1.15)
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels * (light[:, :, None] * cast)
    pixels = (pixels - 118.0) * contrast + 118.0
    pixels += hand.between(1.0, 7.0) * rng.standard_normal((size, size, 1), dtype=np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
