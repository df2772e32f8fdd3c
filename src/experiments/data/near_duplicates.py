"""Near-duplicates: copies of an image with another encoding, size, crop, brightness or color, or mirrored.

Images are compared by thumbnails, in three steps whose cost grows in proportion to the number of images:

1. The signs of a thumbnail's 63 lowest DCT frequencies are its hash (a perceptual hash). Every image is hashed as it is
   and mirrored, whole and in slight crops.
2. Candidates are images that are close to each other when all hashes are sorted, for several orders of their bits
   (Charikar 2002, "Similarity estimation techniques from rounding algorithms"), if few of all bits differ.
3. Each candidate is aligned with the other image by Gauss-Newton steps (Lucas and Kanade 1981). The aligned thumbnails
   must agree in their edges and in their colors.

Images with few edges (a disc on a plain ground) and the images of a data set that are all alike (digits, X-rays of one
view) would often be called crops of each other: these must agree more, and without a crop. Images without contrast are
copies of nothing. The thresholds were chosen on photographs: docs/near_duplicates.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dct

VERSION = 1  # part of the keys of cached thumbnails and pairs: increase it where either would come out differently
SIZE = 32  # pixels of a thumbnail's sides

_CROP = 0.06  # of a side; an aligned candidate may be cropped by more
_CROPS = (  # left, right, top, bottom as shares of the sides: the whole image, its center, its corners
    (0.0, 1.0, 0.0, 1.0),
    (_CROP / 2, 1 - _CROP / 2, _CROP / 2, 1 - _CROP / 2),
    *((x, x + 1 - _CROP, y, y + 1 - _CROP) for x in (0.0, _CROP) for y in (0.0, _CROP)),
)
_SORTS = 16  # orders of the bits
_NEIGHBORS = 8  # hashes that are compared on either side
_MOST_BITS = 14  # bits in which the hashes of two candidates may differ
_KIND, _PAIR = 16, 1024  # factors in the numbers that `_nearest` describes
_MOST_CANDIDATES = 8  # of an image, those with the fewest different bits
_STEPS = 3  # of Gauss-Newton
_LARGEST_STEP = 0.04  # of a side
_MARGIN = 0.15  # of a side: the largest crop
_LEAST_START = 0.2  # correlation of the edges before the alignment
_LEAST_EDGES = 0.75  # correlation of the edges after it
_LEAST_EDGES_STRICT = 0.97  # without an alignment, where a crop is no evidence
_FEW_EDGES = 80  # pixels; of 961
_ALIKE = 0.15  # median correlation of the edges of two images of the data set
_FEW_IMAGES, _SAMPLE = 20, 2000  # between which that is computed
_LEAST_COLORS = 0.5  # correlation of the colors
_LEAST_CONTRAST = 1.0  # of the edges, root mean square, of 255 levels: blank images are copies of nothing
_COLORLESS = 4.0  # mean distance of the colors from gray, of 255: a gray image may be the copy of one in color
_AT_ONCE = 512  # candidates that are aligned at a time

_GRAY = np.array([0.299, 0.587, 0.114], "float32")
_FREQUENCIES = dct(np.eye(SIZE), axis=0, norm="ortho")[:8].astype("float32")  # [8, SIZE]


class NearDuplicate(NamedTuple):
    """Two images, one of which is a copy of the other."""

    first: int  # index of an image; first < second
    second: int
    similarity: float  # correlation of the edges, at most 1
    mirrored: bool


# Two images, by their indices; the second may be a crop of the first, which is mirrored before or not. The crop is
# left, right, top, bottom as shares of the sides.
_CANDIDATE = np.dtype([("first", "i8"), ("second", "i8"), ("mirrored", "?"), ("crop", "f4", 4)])


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return an RGB image as a thumbnail [SIZE, SIZE, 3] uint8; the aspect ratio is not kept."""
    small = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(small, dtype=np.uint8)


def find_near_duplicates(thumbnails: np.ndarray) -> list[NearDuplicate]:
    """Return the pairs of images of which one is a copy of the other, the most similar first.

    Of many copies of one image, each is paired with some of the others.

    Args:
        thumbnails: [N, SIZE, SIZE, 3] uint8, from `thumbnail`.
    """
    gray = thumbnails @ _GRAY
    energy = np.square(_edges(gray)).sum(axis=1)  # [N, SIZE - 1, SIZE - 1], of the differences in both directions
    # Edges in few pixels (participation ratio), or in the same ones as in the other images.
    few = energy.sum(axis=(1, 2)) ** 2 < _FEW_EDGES * np.square(energy).sum(axis=(1, 2))
    plain = few | _all_alike(gray)
    with_contrast = np.flatnonzero(energy.mean(axis=(1, 2)) >= 2 * _LEAST_CONTRAST**2)
    candidates = _candidates(gray[with_contrast])
    for name in ("first", "second"):
        candidates[name] = with_contrast[candidates[name]]
    found: dict[tuple[int, int], NearDuplicate] = {}
    for start in range(0, len(candidates), _AT_ONCE):
        for pair in _verified(candidates[start : start + _AT_ONCE], thumbnails, gray, plain):
            known = found.setdefault((pair.first, pair.second), pair)
            if pair.similarity > known.similarity:
                found[pair.first, pair.second] = pair
    return sorted(found.values(), key=lambda pair: (-pair.similarity, pair.first, pair.second))


# --- candidates


def _candidates(gray: np.ndarray) -> np.ndarray:
    """Return pairs of images [N, SIZE, SIZE] float32 with similar hashes, in both directions, each mirrored and not."""
    bits = _hash_bits(gray)
    hashes = _pack(bits)
    kinds = list(itertools.product((False, True), range(len(_CROPS))))
    crops = np.array(_CROPS, "float32")
    queries = [_hash_bits(_resample(gray[:, :, ::-1] if mirrored else gray, crops[[crop]])) for mirrored, crop in kinds]
    rng = np.random.default_rng(0)
    nearest = np.zeros(0, "int64")
    for _ in range(_SORTS):
        order = rng.permutation(bits.shape[1])
        keys = _pack(bits[:, order])
        ranked = np.argsort(keys, kind="stable")
        first = np.arange(len(gray)).repeat(2 * _NEIGHBORS)
        found = [nearest]
        for (mirrored, crop), query in zip(kinds, queries, strict=True):
            places = np.searchsorted(keys[ranked], _pack(query[:, order]))[:, None] + np.arange(-_NEIGHBORS, _NEIGHBORS)
            second = ranked[np.clip(places, 0, len(gray) - 1)].ravel()
            different = np.bitwise_count(_pack(query)[first] ^ hashes[second])
            near = (different <= _MOST_BITS) & (first != second)
            pair = (first[near] * len(gray) + second[near]) * 2 + mirrored
            found.append(pair * _PAIR + different[near] * np.int64(_KIND) + crop)
        nearest = _nearest(np.concatenate(found), len(gray))
    pair, rest = np.divmod(nearest, _PAIR)
    first, second = np.divmod(pair // 2, len(gray))
    return np.rec.fromarrays([first, second, pair % 2 == 1, crops[rest % _KIND]], dtype=_CANDIDATE)


def _nearest(found: np.ndarray, images: int) -> np.ndarray:
    """Return the best crop of each pair, and of these the nearest of each image.

    Args:
        found: [C] int64: ((first x images + second) x 2 + mirrored) x _PAIR + number of different bits x _KIND + crop.
        images: their number.
    """
    found = np.sort(found)
    found = found[np.diff(found // _PAIR, prepend=-1) > 0]  # the fewest different bits come first
    first, different = found // (2 * images * _PAIR), found % _PAIR // _KIND
    order = np.argsort(first * _PAIR + different, kind="stable")
    _, starts, counts = np.unique(first[order], return_index=True, return_counts=True)
    return found[order[np.arange(len(found)) - np.repeat(starts, counts) < _MOST_CANDIDATES]]


def _hash_bits(gray: np.ndarray) -> np.ndarray:
    """Return the signs [N, 63] bool of the lowest frequencies of images [N, SIZE, SIZE], without the mean."""
    spectrum = _FREQUENCIES @ gray @ _FREQUENCIES.T
    return np.asarray(spectrum.reshape(len(gray), 64)[:, 1:] > 0)


def _pack(bits: np.ndarray) -> np.ndarray:
    """Return bits [N, 63] bool as integers [N] uint64; the first bit is the most significant."""
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(">u8")[:, 0].astype("uint64")


# --- verification


def _all_alike(gray: np.ndarray) -> bool:
    """Return whether most images [N, SIZE, SIZE] have their edges in the same places; false for a few images."""
    if len(gray) < _FEW_IMAGES:
        return False
    order = np.random.default_rng(0).permutation(len(gray))[:_SAMPLE]
    return bool(np.median(_edge_correlation(gray[order], gray[np.roll(order, 1)])) > _ALIKE)


def _verified(
    candidates: np.ndarray, thumbnails: np.ndarray, gray: np.ndarray, plain: np.ndarray
) -> Iterator[NearDuplicate]:
    """Align at most `_AT_ONCE` candidates and yield those that are copies.

    Crops of `plain` images [N] are not evidence of a copy.
    """
    strict = plain[candidates["first"]] | plain[candidates["second"]]
    candidates["crop"][strict] = _CROPS[0]
    moving, fixed = _oriented(gray, candidates), gray[candidates["second"]]
    edges = _edge_correlation(_resample(moving, candidates["crop"]), fixed)
    chosen = edges >= np.where(strict, _LEAST_EDGES_STRICT, _LEAST_START)
    candidates, edges, strict, moving, fixed = (
        candidates[chosen], edges[chosen], strict[chosen], moving[chosen], fixed[chosen]
    )  # fmt: skip
    free = ~strict
    candidates["crop"][free] = _align(moving[free], fixed[free], candidates["crop"][free])
    edges[free] = _edge_correlation(_resample(moving[free], candidates["crop"][free]), fixed[free])
    same = edges >= _LEAST_EDGES
    candidates, edges = candidates[same], edges[same]
    colors = [
        np.stack([images[..., band] - images @ _GRAY for band in (0, 2)], axis=-1)
        for images in (_oriented(thumbnails, candidates), thumbnails[candidates["second"]])
    ]
    aligned = np.stack([_resample(colors[0][..., band], candidates["crop"]) for band in (0, 1)], axis=-1)
    colorless = [np.abs(color).mean(axis=(1, 2, 3)) < _COLORLESS for color in (aligned, colors[1])]
    same = colorless[0] | colorless[1] | (_cosine(aligned, colors[1]) >= _LEAST_COLORS)
    for row in np.flatnonzero(same):
        pair = sorted((int(candidates["first"][row]), int(candidates["second"][row])))
        yield NearDuplicate(pair[0], pair[1], min(1.0, float(edges[row])), bool(candidates["mirrored"][row]))


def _oriented(images: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the first image of each candidate, mirrored where it says so."""
    chosen: np.ndarray = images[candidates["first"]]
    chosen[candidates["mirrored"]] = chosen[candidates["mirrored"], :, ::-1]
    return chosen


def _resample(images: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Return the crops [C, 4] (or one for all) of images [C, SIZE, SIZE], bilinear, in the size of the images."""
    centers = (np.arange(SIZE) + 0.5) / SIZE

    def weights(low: np.ndarray, high: np.ndarray) -> np.ndarray:  # [C, SIZE to, SIZE from]
        places = (low[:, None] + centers * (high - low)[:, None]) * SIZE - 0.5
        distance = np.abs(np.clip(places, 0, SIZE - 1)[..., None] - np.arange(SIZE))
        return np.asarray(np.maximum(0, 1 - distance), "float32")

    left, right, top, bottom = crop.T
    result: np.ndarray = weights(top, bottom) @ images @ weights(left, right).transpose(0, 2, 1)
    return result


def _align(moving: np.ndarray, fixed: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """Return the crops [C, 4] of the moving images [C, SIZE, SIZE] that are most like the fixed ones.

    Gauss-Newton steps on the squared differences; brightness and contrast are fitted, too.
    """
    far = (np.arange(SIZE, dtype="float32") + 0.5) / SIZE  # the share of the right or lower border in a pixel's motion
    allowed = np.array([-_MARGIN, 1 - _MARGIN, -_MARGIN, 1 - _MARGIN], "float32")
    for _ in range(_STEPS):
        current = _resample(moving, crop)
        down, along = np.gradient(current, axis=(1, 2))
        along *= (SIZE / (crop[:, 1] - crop[:, 0]))[:, None, None]
        down *= (SIZE / (crop[:, 3] - crop[:, 2]))[:, None, None]
        terms = [along * (1 - far), along * far, down * (1 - far)[:, None], down * far[:, None]]
        matrix = np.stack([*terms, current, np.ones_like(current)], axis=-1).reshape(len(crop), SIZE**2, 6)
        normal = matrix.transpose(0, 2, 1) @ matrix
        ridge = 1e-5 * np.trace(normal, axis1=1, axis2=2) + 1e-3
        normal += ridge[:, None, None] * np.eye(6, dtype="float32")
        solved = np.linalg.solve(normal, matrix.transpose(0, 2, 1) @ fixed.reshape(len(crop), SIZE**2, 1))[..., 0]
        contrast = np.maximum(solved[:, 4:5], 0.1)
        step = np.clip(solved[:, :4] / contrast, -_LARGEST_STEP, _LARGEST_STEP)
        crop = np.clip(crop + step, allowed, allowed + 2 * _MARGIN).astype("float32")
    return crop


def _edges(gray: np.ndarray) -> np.ndarray:
    """Return the differences [C, 2, SIZE - 1, SIZE - 1] of images [C, SIZE, SIZE] to the right and downwards.

    They are less their mean, so that a smooth gradient has no edges.
    """
    steps = np.stack([np.diff(gray, axis=2)[:, 1:], np.diff(gray, axis=1)[:, :, 1:]], axis=1)
    steps -= steps.mean(axis=(2, 3), keepdims=True)
    return steps


def _edge_correlation(gray: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the correlation [C] of the edges of images [C, SIZE, SIZE]."""
    return _cosine(_edges(gray), _edges(others))


def _cosine(arrays: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the cosine [C] of the angles between arrays [C, ...]; 0 where one is all zeros."""
    a, b = (array.reshape(len(array), math.prod(array.shape[1:])) for array in (arrays, others))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine: np.ndarray = np.vecdot(a, b) / np.maximum(lengths, 1e-6)
    return cosine
