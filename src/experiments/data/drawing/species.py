"""Animal species of the synthetic images, described by what distinguishes one from another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class Species:
    """The features that distinguish one species from another.

    Lengths are in head radii; a mapping gives the odds of each kind.
    """

    number: int  # part of the seed of every image: never reuse or change one
    ears: Mapping[str, float]  # pointed | half | floppy | round | long | lop | side | tuft
    muzzle: Mapping[str, float]  # pads | long | broad | disc | beak
    nose: Mapping[str, float]  # triangle | oval | none
    pupil: Mapping[str, float]  # slit | round | bar
    ear_length: Range
    ear_width: Range
    nose_size: Range
    eye_size: Range
    eye_gap: Range
    head_width: Range
    taper: Range  # how much narrower the chin is than the brow
    bright_iris: float  # odds in [0, 1], as is every number below
    whiskers: float
    stripes: float
    ruff: float = 0.0
    mane: float = 0.0
    horns: float = 0.0
    tongue: float = 0.0
    teeth: float = 0.0


# fmt: off
SPECIES: Mapping[str, Species] = {
    "cats": Species(
        0, {"pointed": 0.78, "half": 0.22}, {"pads": 0.88, "long": 0.12}, {"triangle": 0.85, "oval": 0.15},
        {"slit": 0.65, "round": 0.35}, ear_length=(0.55, 0.9), ear_width=(0.36, 0.5), nose_size=(0.09, 0.14),
        eye_size=(0.16, 0.24), eye_gap=(0.36, 0.46), head_width=(0.95, 1.12), taper=(0.0, 0.25), bright_iris=0.8,
        whiskers=0.88, stripes=0.4, ruff=0.35, tongue=0.04,
    ),
    "dogs": Species(
        1, {"floppy": 0.46, "half": 0.28, "pointed": 0.26}, {"long": 0.85, "pads": 0.15},
        {"oval": 0.85, "triangle": 0.15}, {"round": 1.0}, ear_length=(0.55, 0.95), ear_width=(0.32, 0.5),
        nose_size=(0.12, 0.19), eye_size=(0.13, 0.21), eye_gap=(0.32, 0.44), head_width=(0.85, 1.08),
        taper=(0.05, 0.35), bright_iris=0.5, whiskers=0.15, stripes=0.2, ruff=0.25, tongue=0.45,
    ),
    "bears": Species(
        2, {"round": 1.0}, {"long": 0.85, "pads": 0.15}, {"oval": 0.9, "triangle": 0.1}, {"round": 1.0},
        ear_length=(0.32, 0.48), ear_width=(0.28, 0.4), nose_size=(0.12, 0.19), eye_size=(0.09, 0.16),
        eye_gap=(0.3, 0.42), head_width=(0.98, 1.14), taper=(0.0, 0.2), bright_iris=0.4, whiskers=0.08, stripes=0.1,
        ruff=0.2, tongue=0.15,
    ),
    "foxes": Species(
        3, {"pointed": 0.9, "half": 0.1}, {"long": 0.85, "pads": 0.15}, {"oval": 0.75, "triangle": 0.25},
        {"slit": 0.75, "round": 0.25}, ear_length=(0.65, 1.0), ear_width=(0.34, 0.48), nose_size=(0.09, 0.14),
        eye_size=(0.12, 0.19), eye_gap=(0.32, 0.44), head_width=(0.95, 1.1), taper=(0.35, 0.55), bright_iris=0.7,
        whiskers=0.5, stripes=0.1, ruff=0.8,
    ),
    "rabbits": Species(
        4, {"long": 0.72, "lop": 0.28}, {"pads": 1.0}, {"triangle": 0.85, "oval": 0.15}, {"round": 1.0},
        ear_length=(1.0, 1.5), ear_width=(0.2, 0.3), nose_size=(0.08, 0.13), eye_size=(0.14, 0.22),
        eye_gap=(0.42, 0.54), head_width=(0.82, 1.0), taper=(-0.05, 0.2), bright_iris=0.4, whiskers=0.75,
        stripes=0.1, ruff=0.2, teeth=0.5,
    ),
    "mice": Species(
        5, {"round": 1.0}, {"long": 0.6, "pads": 0.4}, {"oval": 0.6, "triangle": 0.4}, {"round": 1.0},
        ear_length=(0.6, 0.9), ear_width=(0.5, 0.68), nose_size=(0.07, 0.11), eye_size=(0.13, 0.2),
        eye_gap=(0.34, 0.46), head_width=(0.8, 0.98), taper=(0.3, 0.5), bright_iris=0.25, whiskers=0.92, stripes=0.1,
        teeth=0.3,
    ),
    "pigs": Species(
        6, {"half": 0.45, "floppy": 0.25, "pointed": 0.3}, {"disc": 1.0}, {"none": 1.0}, {"round": 1.0},
        ear_length=(0.5, 0.8), ear_width=(0.34, 0.5), nose_size=(0.1, 0.16), eye_size=(0.1, 0.17),
        eye_gap=(0.38, 0.5), head_width=(0.95, 1.12), taper=(-0.05, 0.2), bright_iris=0.45, whiskers=0.08,
        stripes=0.1,
    ),
    "owls": Species(
        7, {"tuft": 0.8, "round": 0.2}, {"beak": 1.0}, {"none": 1.0}, {"round": 0.9, "slit": 0.1},
        ear_length=(0.4, 0.7), ear_width=(0.18, 0.3), nose_size=(0.1, 0.16), eye_size=(0.22, 0.32),
        eye_gap=(0.38, 0.46), head_width=(0.98, 1.14), taper=(0.0, 0.2), bright_iris=0.85, whiskers=0.05,
        stripes=0.4, ruff=0.3,
    ),
    "lions": Species(
        8, {"round": 1.0}, {"pads": 0.8, "long": 0.2}, {"triangle": 0.85, "oval": 0.15},
        {"slit": 0.45, "round": 0.55}, ear_length=(0.32, 0.5), ear_width=(0.28, 0.42), nose_size=(0.14, 0.2),
        eye_size=(0.12, 0.19), eye_gap=(0.34, 0.46), head_width=(0.88, 1.05), taper=(0.0, 0.25), bright_iris=0.75,
        whiskers=0.7, stripes=0.15, mane=0.6,
    ),
    "cows": Species(
        9, {"side": 0.8, "floppy": 0.2}, {"broad": 1.0}, {"none": 1.0}, {"bar": 0.5, "round": 0.5},
        ear_length=(0.5, 0.75), ear_width=(0.2, 0.32), nose_size=(0.1, 0.16), eye_size=(0.12, 0.19),
        eye_gap=(0.42, 0.54), head_width=(0.76, 0.94), taper=(0.1, 0.35), bright_iris=0.4, whiskers=0.05,
        stripes=0.05, horns=0.65, tongue=0.15,
    ),
}
# fmt: on
