"""Surroundings of the synthetic images: background, objects in front, lens and light."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from experiments.data.drawing.shapes import Choices, Colour, curve, darker, lighter, mix, oval, rotation

OVERSAMPLING = 2  # drawn at this multiple of the size, then averaged, since Pillow's polygons have hard edges


def background(random: Choices, side: int) -> Image.Image:
    """Draw a blurred room, or a plain wall, with distracting shapes.

    The shapes are no faces, but have triangles, circles and lines, as faces do.
    """
    cells = random.integer(2, 7)
    base = np.array(lighter(mix(random.coat(), random.colour(), 0.4), random.uniform(0.0, 0.7)), dtype=float)
    room = base + random.rng.normal(0, random.uniform(6, 26), (cells, cells, 3))
    canvas = Image.fromarray(room.clip(10, 245).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas)
    wall: Colour = tuple(base.astype(int).tolist())
    if random.chance(0.25):
        _hatching(draw, random, side, wall)
    for _ in range(random.integer(1, 8)):
        _clutter(draw, random, side, wall)
    return canvas


def _hatching(draw: ImageDraw.ImageDraw, random: Choices, side: int, wall: Colour) -> None:
    """Draw a fence, blinds or wallpaper: parallel lines at one angle."""
    angle, gap = random.uniform(0, math.pi), side * random.uniform(0.05, 0.16)
    colour, width = mix(wall, random.coat(), random.uniform(0.15, 0.5)), max(1, round(gap * random.uniform(0.08, 0.5)))
    cosine, sine = math.cos(angle), math.sin(angle)
    for step in range(-math.ceil(0.75 * side / gap), math.ceil(0.75 * side / gap) + 1):
        x, y = side / 2 - sine * step * gap, side / 2 + cosine * step * gap
        draw.line([x - cosine * side, y - sine * side, x + cosine * side, y + sine * side], fill=colour, width=width)


def _clutter(draw: ImageDraw.ImageDraw, random: Choices, side: int, wall: Colour) -> None:
    """Draw one distracting shape."""
    x, y = random.uniform(0, side), random.uniform(0, side)
    reach = side * random.uniform(0.04, 0.2)
    colour = mix(wall, random.coat() if random.chance(0.7) else random.colour(), random.uniform(0.3, 0.9))
    lean = random.uniform(0, 2 * math.pi)
    what = random.kind({"triangle": 0.25, "eye": 0.2, "blob": 0.25, "line": 0.2, "tuft": 0.1})
    if what == "triangle":
        corner = np.array([(-0.5, 0.4), (0.5, 0.4), (random.uniform(-0.3, 0.3), -1.0)])
        draw.polygon((corner @ rotation(lean) * reach + (x, y)).ravel().tolist(), fill=colour)
        if random.chance(0.5):
            inner = corner * 0.6 @ rotation(lean) * reach + (x, y)
            draw.polygon(inner.ravel().tolist(), fill=lighter(colour, 0.3))
    elif what == "eye":
        draw.polygon(oval(x, y, reach * 0.4, reach * 0.4).ravel().tolist(), fill=colour)
        slit = random.uniform(0.08, 0.3)
        draw.polygon(oval(x, y, reach * slit, reach * 0.3, lean).ravel().tolist(), fill=darker(colour, 0.7))
    elif what == "blob":
        draw.polygon(oval(x, y, reach, reach * random.uniform(0.4, 1), lean).ravel().tolist(), fill=colour)
    elif what == "line":
        far = reach * random.uniform(1, 4)
        end = (x + far * math.cos(lean), y + far * math.sin(lean))
        bend = (random.uniform(0, side), random.uniform(0, side))
        width = random.integer(1, 1 + max(2, side // 40))
        draw.line(curve((x, y), bend, end).ravel().tolist(), fill=colour, width=width)
    else:
        for _ in range(random.integer(3, 7)):
            way = lean + random.uniform(-0.4, 0.4)
            end = (x + reach * math.cos(way), y + reach * math.sin(way))
            draw.line([(x, y), end], fill=colour, width=max(1, side // 150))


def object_in_front(canvas: Image.Image, random: Choices, side: int) -> None:
    """Draw, in some images, an object that hides part of the animal: a leaf, a post or a corner."""
    if not random.chance(0.2):
        return
    draw = ImageDraw.Draw(canvas)
    colour = random.coat() if random.chance(0.5) else random.colour()
    x, y, lean = random.uniform(0, side), random.uniform(0, side), random.uniform(0, math.pi)
    if random.chance(0.5):
        far = (x + 2 * side * math.cos(lean), y + 2 * side * math.sin(lean))
        near = (x - 2 * side * math.cos(lean), y - 2 * side * math.sin(lean))
        draw.line([near, far], fill=colour, width=round(side * random.uniform(0.03, 0.1)))
    else:
        reach = side * random.uniform(0.1, 0.2)
        draw.polygon(oval(x, y, reach, reach * random.uniform(0.4, 1.0), lean).ravel().tolist(), fill=colour)


def photograph(canvas: Image.Image, random: Choices, size: int) -> Image.Image:
    """Reduce the canvas to [size, size] and simulate lens and light.

    These are blur, a gradient of brightness, a shadow, contrast, colour cast and noise.
    """
    image = canvas.reduce(OVERSAMPLING)
    if random.chance(0.3):
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.1) * size / 150))
    rng = random.rng
    row = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope = random.uniform(0.0, 0.5)
    angle = random.uniform(0, 2 * math.pi)
    ramp = slope * (math.cos(angle) * row[None, :] + math.sin(angle) * row[:, None])
    light = np.exp(ramp + random.uniform(-0.25, 0.15)).astype(np.float32)
    if random.chance(0.25):
        edge = math.cos(angle + 1.3) * row[None, :] + math.sin(angle + 1.3) * row[:, None]
        light *= 1.0 - random.uniform(0.15, 0.45) / (1.0 + np.exp(-(edge - random.uniform(-0.3, 0.3)) * 40))
    cast = np.exp(rng.normal(0, 0.07, 3)).astype(np.float32)
    contrast = random.uniform(0.8, 1.15)
    pixels = np.asarray(image, dtype=np.float32)
    pixels = pixels * (light[:, :, None] * cast)
    pixels = (pixels - 118.0) * contrast + 118.0
    pixels += random.uniform(1.0, 7.0) * rng.standard_normal((size, size, 1), dtype=np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
