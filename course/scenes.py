"""Synthetic road scenes, seen from a camera above the right-hand lane, whose true steering and collision are known.

The ground is ray cast: every pixel below the horizon is followed to the point of the road plane that it shows, and is
shaded by what lies there. Everything that stands on the ground is painted over it as flat shapes, farthest first.

Lengths are in metres, angles in radians, shades in [0, 1] (0 black, 1 white). The road is an arc of a circle: "along"
is the distance along that arc from the camera, "across" is the distance to the right of the middle of the lane.
"""

import math
import operator
from typing import NamedTuple

from course.scene_objects import Thing, between, blend, cover, ellipse, random_obstacle, random_trees

import numpy as np

SHARPEST_RADIUS = 28.0
"""Radius of the road, in metres, at a steering of 1 or -1."""

CLOSE = (5.0, 12.0)
"""Nearest and farthest obstacle, in metres, of ``scenes`` that counts as a collision."""

FAR = (25.0, 60.0)
"""Nearest and farthest obstacle, in metres, of ``scenes`` that does not count as one. Between the two there is none."""

SMALLEST_SIDE = 16
"""Smallest height and width of an image, in pixels."""

SMALLEST_DISTANCE = 2.0
"""Smallest distance of an obstacle, in metres: any nearer, it would hide the whole road."""


class _View(NamedTuple):
    """Where the camera is, and the road and the air in front of it."""

    focal: float  # pixels
    horizon: float  # pixels below the top edge
    camera_height: float
    camera_across: float
    heading: float  # of the camera, positive to the right of the road's direction
    curvature: float  # 1 / metres, positive to the right
    lane_width: float
    haze: float  # shade that the distance fades into
    visibility: float  # distance at which all but 1 / e of a thing has faded


def _noise(tile: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Interpolate a tile of random numbers, repeated without end, at positions in units of its cells.

    The tile has a power of two of cells a side, and then the first ones again, so that no neighbour needs wrapping.
    """
    stride = len(tile)
    left, top = np.floor(x), np.floor(y)
    x_share, y_share = x - left, y - top
    corner = (top.astype(np.int64) & (stride - 2)) * stride + (left.astype(np.int64) & (stride - 2))
    upper, lower = tile.take(corner), tile.take(corner + stride)
    upper += x_share * (tile.take(corner + 1) - upper)
    lower += x_share * (tile.take(corner + stride + 1) - lower)
    return upper + y_share * (lower - upper)


def _road_position(view: _View, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (along, across) of the points x to the right of the camera and z in front of it."""
    cos, sin = math.cos(view.heading), math.sin(view.heading)
    x, z = x * cos + z * sin + view.camera_across, z * cos - x * sin
    # The radius minus the distance to the arc's centre, written so that it also holds for a straight road.
    excess = view.curvature * (x * x + z * z) - 2 * x
    across = -excess / (1 + np.sqrt(np.maximum(1 + view.curvature * excess, 0)))
    if abs(view.curvature) < 1e-6:
        return z, across
    return np.arctan2(view.curvature * z, 1 - view.curvature * x) / view.curvature, across


def _camera_position(view: _View, along: float, across: float) -> tuple[float, float]:
    """Return (x, z) of a point of the road: the inverse of ``_road_position``."""
    angle = view.curvature * along
    # The straight line to the point on the arc is turned by half of the angle.
    chord = along * math.sin(angle / 2) / (angle / 2) if angle else along
    x = chord * math.sin(angle / 2) + across * math.cos(angle) - view.camera_across
    z = chord * math.cos(angle / 2) - across * math.sin(angle)
    cos, sin = math.cos(view.heading), math.sin(view.heading)
    return x * cos - z * sin, z * cos + x * sin


def _paint_sky(sky: np.ndarray, view: _View, tile: np.ndarray, rng: np.random.Generator) -> None:
    """Fill the rows above the horizon."""
    zenith, cloudiness, drift = between(rng, 0.3, 0.65), between(rng, 0, 0.8), between(rng, 0, 64)
    ridges = [(between(rng, 0.01, 0.1), between(rng, 0.1, 0.35), between(rng, 0, 64)) for _ in range(2)]

    rows, columns = sky.shape
    up = ((view.horizon - 0.5 - np.arange(rows, dtype=np.float32)) / view.focal)[:, None]
    right = ((np.arange(columns, dtype=np.float32) + 0.5 - columns / 2) / view.focal)[None, :]
    sky[:] = view.haze + (zenith - view.haze) * np.clip(up / 0.6, 0, 1) ** 0.7

    # Clouds lie on a plane overhead, so that they shrink towards the horizon as the ground does.
    overhead = 1 / (np.maximum(up, 0) + 0.1)
    clouds = 0.65 * _noise(tile, right * overhead * 0.8 + drift, overhead * 1.6)
    clouds += 0.35 * _noise(tile, right * overhead * 2.4, overhead * 4.8 + drift)
    blend(sky, 0.95, cloudiness * np.clip((clouds - 0.45) * 4, 0, 1) * np.clip(up / 0.1, 0, 1))

    for number, (height, darkness, shift) in enumerate(ridges, start=1):
        start = np.full((1, 1), shift, np.float32)
        outline = _noise(tile, right * 4 * number + shift, start) + 0.15 * _noise(tile, right * 40, start)
        blend(sky, view.haze * (1 - darkness * number), cover(height / number * outline - up, 1 / view.focal))


def _paint_ground(ground: np.ndarray, view: _View, tile: np.ndarray, rng: np.random.Generator) -> None:
    """Fill the rows below the horizon with fields, asphalt and the lines on it."""
    field, asphalt, gravel = between(rng, 0.2, 0.6), between(rng, 0.25, 0.45), between(rng, 0.4, 0.65)
    verge_width, line_width, line = between(rng, 0.2, 0.9), between(rng, 0.13, 0.22), between(rng, 0.8, 1)
    first_dash, contrast = between(rng, 0, 9), between(rng, 0.6, 1.4)

    rows, columns = ground.shape
    below = np.arange(rows, dtype=np.float32) + math.floor(view.horizon) + 0.5 - view.horizon
    z = (view.focal * view.camera_height / np.maximum(below, 0.25))[:, None]
    x = ((np.arange(columns, dtype=np.float32) + 0.5 - columns / 2) / view.focal)[None, :] * z
    along, across = _road_position(view, x, z)
    from_centre = across + view.lane_width / 2
    # How much ground lies behind one pixel: in depth, across the road and along it.
    pixel_depth = z * z / (view.focal * view.camera_height)
    pixel_across, pixel_along = np.hypot(*np.gradient(across)), np.hypot(*np.gradient(along))

    def texture(cell: float) -> np.ndarray:
        # Cells smaller than the ground behind a pixel must average out, or the distance would flicker.
        return (_noise(tile, x / cell, z / cell) - 0.5) * (contrast / (1 + (pixel_depth / cell) ** 2))

    patches, grain = texture(1.3), texture(0.07)
    ground[:] = field + 0.15 * texture(6.0) + 0.2 * patches + 0.25 * texture(0.25)

    inside = view.lane_width + 0.3 - np.abs(from_centre)
    blend(ground, gravel + 0.3 * grain, cover(inside + verge_width + 0.5 * patches, pixel_across))
    from_tracks = np.abs(np.abs(np.abs(from_centre) - view.lane_width / 2) - 0.75)
    tracks = np.clip(1 - from_tracks / 0.35, 0, 1)
    blend(ground, asphalt + 0.1 * patches + 0.15 * grain - 0.04 * tracks, cover(inside, pixel_across))

    # A line narrower than a pixel dims by its share of that pixel.
    share = np.minimum(line_width / pixel_across, 1)
    edges = cover(line_width / 2 - np.abs(np.abs(from_centre) - view.lane_width), pixel_across)
    blend(ground, line, np.minimum(edges, share))
    periods = (along + first_dash) / 9
    dashes = cover(1.5 - 9 * np.abs(periods - np.round(periods)), np.minimum(pixel_along, 9))
    centre = cover(line_width / 2 - np.abs(from_centre), pixel_across)
    blend(ground, line, dashes * np.minimum(centre, share))

    blend(ground, view.haze, 1 - np.exp(-z / view.visibility))


def _paint_slice(picture: np.ndarray, view: _View, thing: Thing, behind: float) -> None:
    """Paint the front of a thing, or its outline at a distance behind the front."""
    x_middle, z = _camera_position(view, thing.along + behind, thing.across)
    # Beyond a quarter of a circle the road comes back, and twelve visibilities away nothing is left of a thing.
    if not 1 < z < 12 * view.visibility or abs(view.curvature * (thing.along + behind)) > math.pi / 2:
        return
    pixel = z / view.focal
    middle, foot = picture.shape[1] / 2 + x_middle / pixel, view.horizon + view.camera_height / pixel
    reach = 1.4 * thing.half_width / pixel + 1
    top, bottom = max(0, int(foot - thing.height / pixel - 1)), max(0, int(foot + 0.6 / pixel + 2))
    left, right = max(0, int(middle - reach)), max(0, int(middle + reach + 1))
    window = picture[top:bottom, left:right]
    x = ((np.arange(window.shape[1], dtype=np.float32) + left + 0.5 - middle) * pixel)[None, :]
    y = ((foot - np.arange(window.shape[0], dtype=np.float32) - top - 0.5) * pixel)[:, None]

    # Haze fades the thing and not what is behind it, which has been faded already: take it off, and put it on after.
    clear = math.exp(-z / view.visibility)
    window -= (1 - clear) * view.haze
    window /= clear
    if behind:
        blend(window, 0.6 * thing.shade, cover(thing.outline(x, y), pixel))
    else:
        # A round shadow on the ground is seen at a slant, and so it is flat in the picture.
        shadow = ellipse(x, y, 2.6 * thing.half_width, 2 * thing.half_width * view.camera_height / z)
        blend(window, 0.05, 0.6 * np.clip(shadow / (0.3 * thing.half_width), 0, 1))
        thing.paint(window, x, y, pixel, thing.shade)
    window *= clear
    window += (1 - clear) * view.haze


def _paint_thing(picture: np.ndarray, view: _View, thing: Thing) -> None:
    """Paint a thing as a stack of outlines, so that in a bend one sees its side."""
    for behind in np.linspace(thing.length, 0, 7 if thing.outline else 1):
        _paint_slice(picture, view, thing, float(behind))


def _integer(name: str, value: int, smallest: int) -> int:
    try:
        integer = operator.index(value)
    except TypeError:
        integer = smallest - 1
    if integer < smallest:
        raise ValueError(f"{name} must be an integer of at least {smallest}, not {value!r}")
    return integer


def render(
    steering: float,
    obstacle_distance: float | None,
    rng: np.random.Generator,
    height: int = 200,
    width: int = 200,
) -> np.ndarray:
    """Render one scene.

    Steering is the curvature of the road and nothing else: the camera's heading and its place in the lane vary a
    little, at random, and do not change the truth. Two calls whose generators are in the same state differ in what
    the arguments say only; at another size they show the same scene, but for the camera's noise.

    Args:
        steering: Curvature of the road in [-1, 1], in units of 1 / ``SHARPEST_RADIUS``; positive bends right.
        obstacle_distance: Distance along the lane to the obstacle on it, in metres, at least ``SMALLEST_DISTANCE``;
            None for a free lane.
        rng: Source of everything else: horizon, light, texture, noise, the camera's place, the kind of obstacle.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels. The vertical field of view is fixed: a wider image shows more road.

    Returns:
        A float32 array of shape (height, width, 1), axes (row, column, channel), with values in [0, 1].

    Raises:
        ValueError: If the steering, the distance or the size is out of its range.
    """
    if not -1 <= steering <= 1:
        raise ValueError(f"steering must be in [-1, 1], not {steering!r}")
    if obstacle_distance is not None and not SMALLEST_DISTANCE <= obstacle_distance < math.inf:
        raise ValueError(
            f"obstacle_distance must be None or at least {SMALLEST_DISTANCE} metres, not {obstacle_distance!r}"
        )
    height, width = _integer("height", height, SMALLEST_SIDE), _integer("width", width, SMALLEST_SIDE)

    # The lens is always the same and the camera's height nearly so: a picture of a bend is also one of a bend twice as
    # wide from twice as high, and only the known height tells them apart.
    view = _View(
        focal=0.8 * height,
        horizon=between(rng, 0.36, 0.46) * height,
        camera_height=between(rng, 1.65, 1.75),
        camera_across=between(rng, -0.35, 0.35),
        heading=between(rng, -0.04, 0.04),
        curvature=float(steering) / SHARPEST_RADIUS,
        lane_width=between(rng, 2.7, 3.4),
        haze=between(rng, 0.75, 0.98),
        visibility=between(rng, 90, 400),
    )
    gain, gamma, vignette = between(rng, 0.75, 1.1), between(rng, 0.75, 1.25), between(rng, 0, 0.35)
    grain = between(rng, 0.004, 0.02)
    tile = np.pad(rng.random((64, 64), dtype=np.float32), (0, 1), mode="wrap")

    picture = np.empty((height, width), np.float32)
    sky_rows = math.floor(view.horizon)
    _paint_sky(picture[:sky_rows], view, tile, rng)
    _paint_ground(picture[sky_rows:], view, tile, rng)
    # The obstacle is drawn for a free lane, too, so that the two scenes differ in nothing else.
    obstacle = random_obstacle(float(obstacle_distance or SMALLEST_DISTANCE), rng)
    things = random_trees(view.lane_width, rng)
    if obstacle_distance is not None:
        things.append(obstacle)
    for thing in sorted(things, key=lambda thing: -thing.along):
        _paint_thing(picture, view, thing)

    rows, columns = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    picture = gain * np.clip(picture, 0, 1) ** gamma * (1 - vignette / 2 * (rows[:, None] ** 2 + columns**2))
    picture += grain * rng.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture, 0, 1)[:, :, None]


def _truth(rng: np.random.Generator) -> tuple[float, float | None]:
    """Draw a steering of standard deviation 0.5 and the distance of the obstacle, if there is one."""
    steering = 2 * float(rng.beta(1.5, 1.5)) - 1
    close, seen = rng.random(2) < (0.5, 0.6)
    near, far = CLOSE if close else FAR
    distance = between(rng, near, far)
    return steering, distance if close or seen else None


def scenes(n: int, seed: int, height: int = 200, width: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render scenes of a random truth.

    Half of the scenes have an obstacle at a distance in ``CLOSE``: a collision. Of the others, some have one at a
    distance in ``FAR``. Each scene has a generator of its own, so scene i depends on the seed and on i, not on n.

    Args:
        n: Number of scenes, at least 0.
        seed: Seed, at least 0. The same seed gives the same bytes.
        height: Height of the images, in pixels.
        width: Width of the images, in pixels.

    Returns:
        The images, float32 of shape (n, height, width, 1), axes (scene, row, column, channel), values in [0, 1]; the
        steering, float32 of shape (n,), in [-1, 1], positive to the right, standard deviation 0.5; and the collision,
        float32 of shape (n,), 1 for an obstacle close ahead and 0 for none.

    Raises:
        ValueError: If n or the seed is negative or no integer, or if the size is out of its range.
    """
    n, seed = _integer("n", n, 0), _integer("seed", seed, 0)
    height, width = _integer("height", height, SMALLEST_SIDE), _integer("width", width, SMALLEST_SIDE)

    images = np.empty((n, height, width, 1), np.float32)
    steering, collision = np.empty(n, np.float32), np.empty(n, np.float32)
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        steering[i], distance = _truth(rng)
        collision[i] = distance is not None and distance <= CLOSE[1]
        images[i] = render(float(steering[i]), distance, rng, height, width)
    return images, steering, collision
