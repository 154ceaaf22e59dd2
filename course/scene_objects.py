"""What stands on the ground of a scene: cars, vans, pedestrians, barriers and trees, painted as flat shapes.

Lengths are in metres, shades in [0, 1] (0 black, 1 white). A shape is given by how deep inside it each point lies, in
metres, negative outside. A point is x to the right of the thing's middle and y above the ground.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Thing(NamedTuple):
    """Something that stands on the ground.

    Attributes:
        paint: Paints the front, called as paint(picture, x, y, pixel, shade); a pixel is that many metres wide.
        outline: How deep points lie inside the body, called as outline(x, y); None for something flat.
        half_width: Half of its width.
        height: Its height.
        length: Its length, along the road.
        along: Where its front is, along the road from the camera.
        across: Where its middle is, to the right of the middle of the lane.
        shade: Its shade.
    """

    paint: Callable
    outline: Callable | None
    half_width: float
    height: float
    length: float
    along: float = 0.0
    across: float = 0.0
    shade: float = 0.0


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number between two others."""
    return float(rng.uniform(low, high))


def blend(picture: np.ndarray, shade: np.ndarray | float, share: np.ndarray) -> None:
    """Paint over a picture, in place: each pixel's share, from 0 to 1, takes the shade."""
    picture += share * (shade - picture)


def cover(depth_inside: np.ndarray, pixel: np.ndarray | float) -> np.ndarray:
    """Return the share of each pixel that a shape covers, from how deep inside the shape the pixel's centre lies."""
    return np.clip(depth_inside / pixel + 0.5, 0, 1)


def _panel(x: np.ndarray, y: np.ndarray, heights: tuple[float, float], widths: tuple[float, float]) -> np.ndarray:
    """Return how deep points lie inside an upright trapezoid around x = 0: heights and widths of its bottom and top."""
    (bottom, top), (width, top_width) = heights, widths
    half = width / 2 + (top_width - width) / 2 * (y - bottom) / (top - bottom)
    return np.minimum(np.minimum(y - bottom, top - y), half - np.abs(x))


def ellipse(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    """Return how deep points lie inside an ellipse around (0, 0)."""
    return (1 - np.hypot(x / (width / 2), y / (height / 2))) * min(width, height) / 2


def _wheels(x: np.ndarray, y: np.ndarray, track: float) -> np.ndarray:
    return _panel(np.abs(x) - track / 2, y, (0.0, 0.5), (0.25, 0.25))


def _car_outline(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    body = np.maximum(_panel(x, y, (0.28, 0.95), (1.8, 1.74)), _panel(x, y, (0.9, 1.46), (1.56, 1.14)))
    return np.maximum(body, _wheels(x, y, 1.4))


def _van_outline(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(_panel(x, y, (0.35, 2.3), (2.0, 1.84)), _wheels(x, y, 1.56))


def _paint_car(picture: np.ndarray, x: np.ndarray, y: np.ndarray, pixel: float, shade: float) -> None:
    lamps = 0.9 if shade < 0.6 else 0.25
    blend(picture, shade, cover(_car_outline(x, y), pixel))
    blend(picture, 0.04, cover(np.minimum(_wheels(x, y, 1.4), 0.28 - y), pixel))
    blend(picture, 0.12 + 0.25 * np.clip(y - 0.95, 0, 1), cover(_panel(x, y, (0.98, 1.36), (1.36, 1.08)), pixel))
    blend(picture, shade * 0.45, cover(_panel(x, y, (0.28, 0.46), (1.8, 1.8)), pixel))
    blend(picture, lamps, cover(_panel(np.abs(x) - 0.74, y, (0.68, 0.86), (0.26, 0.26)), pixel))
    blend(picture, 0.85, cover(_panel(x, y, (0.52, 0.64), (0.5, 0.5)), pixel))


def _paint_van(picture: np.ndarray, x: np.ndarray, y: np.ndarray, pixel: float, shade: float) -> None:
    lamps = 0.9 if shade < 0.6 else 0.25
    blend(picture, shade, cover(_van_outline(x, y), pixel))
    blend(picture, 0.04, cover(np.minimum(_wheels(x, y, 1.56), 0.35 - y), pixel))
    blend(picture, 0.15, cover(_panel(np.abs(x) - 0.46, y, (1.4, 2.0), (0.72, 0.66)), pixel))
    blend(picture, shade * 0.5, cover(_panel(x, y, (0.35, 2.2), (0.05, 0.05)), pixel))
    blend(picture, shade * 0.4, cover(_panel(x, y, (0.35, 0.55), (2.0, 2.0)), pixel))
    blend(picture, lamps, cover(_panel(np.abs(x) - 0.88, y, (0.75, 1.15), (0.14, 0.14)), pixel))
    blend(picture, 0.85, cover(_panel(x - 0.45, y, (0.7, 0.84), (0.5, 0.5)), pixel))


def _paint_pedestrian(picture: np.ndarray, x: np.ndarray, y: np.ndarray, pixel: float, shade: float) -> None:
    side = np.abs(x)
    blend(picture, 0.12, cover(_panel(side - 0.17 + 0.06 * y, y, (0.0, 0.88), (0.15, 0.2)), pixel))
    blend(picture, shade, cover(_panel(x, y, (0.82, 1.48), (0.4, 0.52)), pixel))
    blend(picture, shade * 0.8, cover(_panel(side - 0.38 + 0.1 * y, y, (0.82, 1.44), (0.12, 0.14)), pixel))
    blend(picture, 0.62, cover(ellipse(x, y - 1.62, 0.22, 0.28), pixel))
    blend(picture, 0.1, cover(np.minimum(ellipse(x, y - 1.65, 0.25, 0.28), y - 1.66), pixel))


def _paint_barrier(picture: np.ndarray, x: np.ndarray, y: np.ndarray, pixel: float, shade: float) -> None:
    blend(picture, 0.15, cover(_panel(np.abs(x) - 0.75, y, (0.0, 1.1), (0.12, 0.08)), pixel))
    stripes = cover(0.125 - np.abs((x + y) % 0.5 - 0.25), pixel)
    for bottom in (0.3, 0.75):
        board = _panel(x, y, (bottom, bottom + 0.32), (2, 2))
        blend(picture, 0.95 - (0.95 - 0.4 * shade) * stripes, cover(board, pixel))


def _paint_tree(picture: np.ndarray, x: np.ndarray, y: np.ndarray, pixel: float, shade: float) -> None:
    blend(picture, 0.5 * shade, cover(_panel(x, y, (0.0, 2.5), (0.4, 0.3)), pixel))
    leaves = shade * (0.8 + 0.12 * (y - 3.5))
    for right, up, width in ((-0.8, 2.8, 2.2), (0.8, 2.7, 2.3), (0.1, 4.0, 2.6), (0.0, 3.1, 2.4)):
        blend(picture, leaves, cover(ellipse(x - right, y - up, width, 0.9 * width), pixel))


_CAR = Thing(_paint_car, _car_outline, half_width=0.95, height=1.5, length=3.6)
_VAN = Thing(_paint_van, _van_outline, half_width=1.05, height=2.35, length=4.5)
_PEDESTRIAN = Thing(_paint_pedestrian, None, half_width=0.4, height=1.8, length=0.0)
_BARRIER = Thing(_paint_barrier, None, half_width=1.05, height=1.15, length=0.0)
_TREE = Thing(_paint_tree, None, half_width=2.1, height=5.3, length=0.0)


def random_obstacle(distance: float, rng: np.random.Generator) -> Thing:
    """Return a car, a van, a pedestrian or a barrier on the lane, at a distance along it."""
    kind = (_CAR, _VAN, _PEDESTRIAN, _BARRIER)[rng.choice(4, p=(0.45, 0.2, 0.2, 0.15))]
    return kind._replace(along=distance, across=between(rng, -0.35, 0.35), shade=between(rng, 0.08, 0.92))


def random_trees(lane_width: float, rng: np.random.Generator) -> list[Thing]:
    """Return up to eight trees beside the road, whose lanes have a width in metres."""
    trees = []
    for _ in range(rng.integers(0, 9)):
        from_centre = math.copysign(lane_width + between(rng, 4, 16), between(rng, -1, 1))
        along, shade = between(rng, 12, 90), between(rng, 0.12, 0.4)
        trees.append(_TREE._replace(along=along, across=from_centre - lane_width / 2, shade=shade))
    return trees
