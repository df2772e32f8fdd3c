"""Colours, random choices and shapes of the synthetic images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

COATS: tuple[Colour, ...] = (
    (52, 48, 52), (88, 84, 90), (138, 134, 136), (186, 182, 180), (108, 76, 54), (146, 94, 60),
    (206, 128, 66), (214, 178, 128), (236, 218, 186), (240, 236, 232), (118, 126, 142), (226, 176, 164),
)  # fmt: skip
IRISES: tuple[Colour, ...] = ((228, 186, 60), (140, 186, 80), (90, 160, 190), (206, 132, 52), (96, 190, 160))
DARK_IRISES: tuple[Colour, ...] = ((92, 60, 36), (64, 46, 36), (120, 84, 50))
INK: Colour = (34, 28, 30)

TURN = np.linspace(0.0, 2.0 * math.pi, 28, endpoint=False)
CIRCLE = np.stack([np.sin(TURN), -np.cos(TURN)], axis=1)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return a mixture of two colours, with `share` of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def darker(colour: Colour, share: float) -> Colour:
    return mix(colour, (12, 8, 14), share)


def lighter(colour: Colour, share: float) -> Colour:
    return mix(colour, (255, 250, 244), share)


class Choices:
    """Random choices for one image, all from one generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def chance(self, odds: float) -> bool:
        return bool(self.rng.random() < odds)

    def integer(self, low: int, high: int) -> int:
        """Return a random integer from low to high - 1."""
        return int(self.rng.integers(low, high))

    def kind(self, odds: Mapping[str, float]) -> str:
        left = self.rng.random() * sum(odds.values())
        for name, share in odds.items():
            left -= share
            if left < 0:
                return name
        return name

    def choice(self, colours: Sequence[Colour]) -> Colour:
        return colours[self.integer(0, len(colours))]

    def colour(self) -> Colour:
        red, green, blue = self.rng.integers(25, 240, 3).tolist()
        return red, green, blue

    def coat(self) -> Colour:
        """Return a fur colour, with the same odds for every species."""
        red, green, blue = (np.array(self.choice(COATS)) + self.rng.normal(0, 12, 3)).clip(20, 250).astype(int).tolist()
        return red, green, blue


class HeadCanvas:
    """A canvas with the position, size and rotation of a head on it.

    Head units: x right, y down, the skull's radius about 1.
    """

    def __init__(
        self, canvas: Image.Image, centre: tuple[float, float], radius: float, tilt: float, yaw: float, contour: float
    ) -> None:
        self.contour = contour
        self.draw = ImageDraw.Draw(canvas)
        self.centre = np.array(centre)
        self.radius = radius
        self.yaw = yaw
        self.matrix = rotation(tilt) * radius

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
        self.draw.polygon(self.place(points, depth), fill=fill)

    def edge(self, points: np.ndarray, fill: Colour, depth: float = 0.0) -> None:
        """Draw a line around a shape."""
        self.line(np.concatenate([points, points[:1]]), fill, self.contour, depth)

    def oval(
        self, x: float, y: float, across: float, down: float, fill: Colour, depth: float = 0.0, lean: float = 0.0
    ) -> None:
        self.shape(oval(x, y, across, down, lean), fill, depth)

    def line(self, points: np.ndarray, fill: Colour, units: float, depth: float = 0.0) -> None:
        self.draw.line(self.place(points, depth), fill=fill, width=self.width(units), joint="curve")


def rotation(angle: float) -> np.ndarray:
    """Return the matrix [2, 2] that turns points [N, 2] by an angle in radians: points @ matrix."""
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def oval(x: float, y: float, across: float, down: float, lean: float = 0.0) -> np.ndarray:
    points = CIRCLE * (across, down)
    return (points @ rotation(lean) if lean else points) + (x, y)


def curve(start: Point, bend: Point, end: Point, steps: int = 7) -> np.ndarray:
    """Return [steps, 2] points of a quadratic Bezier curve."""
    t = np.linspace(0.0, 1.0, steps)[:, None]
    points: np.ndarray = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t**2 * np.array(end)
    return points
