"""Road scenes: what they show is what the truth says, and the same seed gives the same bytes."""

import math

from course import scenes as module
from course.scene_objects import blend, cover, ellipse, random_obstacle, random_trees
from course.scenes import CLOSE, FAR, SMALLEST_DISTANCE, SMALLEST_SIDE, render, scenes

import numpy as np
import pytest


def rendered(steering=0.0, distance=None, seed=0, height=100, width=120):
    return render(steering, distance, np.random.default_rng(seed), height, width)


def obstacle_at(distance, steering=0.0, seed=0):
    """Return which pixels (height, width) an obstacle changes."""
    return abs(rendered(steering, distance, seed) - rendered(steering, None, seed))[..., 0] > 0.01


@pytest.mark.parametrize(("height", "width"), [(200, 200), (SMALLEST_SIDE, 40), (63, SMALLEST_SIDE)])
def test_shapes_types_and_ranges(height, width):
    images, steering, collision = scenes(5, seed=1, height=height, width=width)
    assert images.shape == (5, height, width, 1)
    assert steering.shape == collision.shape == (5,)
    assert images.dtype == steering.dtype == collision.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std(axis=(1, 2, 3)).min() > 0.02  # something is to be seen in each
    assert abs(steering).max() <= 1
    assert set(collision) <= {0, 1}


def test_no_scenes_are_none():
    images, steering, collision = scenes(0, seed=0, height=20, width=30)
    assert (images.shape, steering.shape, collision.shape) == ((0, 20, 30, 1), (0,), (0,))


def test_a_scene_depends_on_the_seed_and_its_number_and_not_on_how_many_there_are():
    few, many, other = (scenes(n, seed, 40, 50) for n, seed in ((3, 7), (6, 7), (3, 8)))
    for a, b, c in zip(few, many, other, strict=True):
        assert a.tobytes() == b[:3].tobytes()
        assert a.tobytes() != c.tobytes()
    assert len({image.tobytes() for image in many[0]}) == 6


def test_the_truth_is_what_is_rendered(monkeypatch):
    """A collision is an obstacle at a distance in CLOSE; no other distance than those of CLOSE and FAR is rendered."""
    asked = []

    def noted(steering, distance, rng, height, width):
        asked.append((steering, distance))
        return np.zeros((height, width, 1), np.float32)

    monkeypatch.setattr(module, "render", noted)
    _, steering, collision = scenes(2000, seed=0, height=16, width=16)
    np.testing.assert_array_equal(steering, np.float32([angle for angle, _ in asked]))
    distances = [distance for _, distance in asked]
    for distance, collides in zip(distances, collision, strict=True):
        low, high = CLOSE if collides else FAR
        assert distance is None or low <= distance <= high
        assert distance is not None or not collides
    # Four standard deviations of what is drawn, or more.
    assert abs(collision.mean() - 0.5) < 0.05
    assert abs(np.mean([distance is None for distance in distances]) - 0.2) < 0.04
    assert abs(steering.std() - 0.5) < 0.03
    assert abs(steering.mean()) < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_positive_steering_bends_the_road_to_the_right(seed):
    """The obstacle stands on the lane."""
    columns = {}
    for steering in (-0.8, 0.0, 0.8):
        changed = obstacle_at(20.0, steering, seed)
        columns[steering] = np.nonzero(changed)[1].mean()
    assert columns[-0.8] < columns[0.0] - 10
    assert columns[0.8] > columns[0.0] + 10


@pytest.mark.parametrize("seed", range(4))
def test_a_nearer_obstacle_is_larger_and_its_foot_lower(seed):
    seen = [obstacle_at(distance, seed=seed) for distance in (6.0, 15.0, 40.0)]
    assert seen[0].sum() > 2 * seen[1].sum() > 4 * seen[2].sum() > 0
    feet = [np.nonzero(changed)[0].max() for changed in seen]
    assert feet == sorted(feet, reverse=True)
    assert len(set(feet)) == 3


def test_an_obstacle_changes_nothing_else():
    changed = obstacle_at(15.0)
    rows, columns = np.nonzero(changed)
    height, width = changed.shape
    assert np.ptp(rows) < height / 2
    assert np.ptp(columns) < width / 2


def test_steering_changes_the_ground_and_not_the_sky():
    left, right = rendered(-1.0), rendered(1.0)
    same = (left == right)[..., 0]
    assert same[:20].all()
    assert same[60:].mean() < 0.5


def test_another_size_shows_the_same_scene():
    small, large, other = rendered(0.3, 10.0, 5, 100, 120), rendered(0.3, 10.0, 5, 200, 240), rendered(0.3, 10.0, 6)
    halved = large.reshape(100, 2, 120, 2).mean((1, 3))[..., None]
    assert abs(halved - small).mean() < 0.03
    assert abs(halved - other).mean() > 0.08


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steering": 1.01}, "steering must be in"),
        ({"steering": math.nan}, "steering must be in"),
        ({"distance": SMALLEST_DISTANCE / 2}, "obstacle_distance must be None or at least 2.0 metres"),
        ({"distance": math.inf}, "obstacle_distance"),
        ({"distance": math.nan}, "obstacle_distance"),
        ({"height": SMALLEST_SIDE - 1}, "height must be an integer of at least 16, not 15"),
        ({"width": 100.0}, "width must be an integer"),
    ],
)
def test_what_cannot_be_rendered_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        rendered(**change)


@pytest.mark.parametrize("change", [{"n": -1}, {"n": 1.5}, {"seed": -1}, {"height": 3}, {"width": "wide"}])
def test_scenes_refuses_numbers_out_of_range(change):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least"):
        scenes(**({"n": 1, "seed": 0} | change))


def test_an_ellipse_is_deep_inside_and_negative_outside():
    x, y = np.array([0.0, 0.9, 1.0, 1.1, 0.0]), np.array([0.0, 0.0, 0.0, 0.0, 3.0])
    depth = ellipse(x, y, 2.0, 4.0)
    assert depth[0] == 1
    assert (np.sign(depth) == [1, 1, 0, -1, -1]).all()


def test_a_shape_covers_pixels_by_halves_at_its_edge():
    share = cover(np.array([-1.0, -0.05, 0.0, 0.05, 1.0]), 0.2)
    np.testing.assert_allclose(share, [0, 0.25, 0.5, 0.75, 1])
    picture = np.full(5, 0.2)
    blend(picture, 1.0, share)
    np.testing.assert_allclose(picture, [0.2, 0.4, 0.6, 0.8, 1])


def test_all_obstacles_are_met_on_the_lane_and_trees_beside_the_road():
    rng = np.random.default_rng(0)
    obstacles = [random_obstacle(9.0, rng) for _ in range(200)]
    assert len({obstacle.paint for obstacle in obstacles}) == 4
    assert {obstacle.along for obstacle in obstacles} == {9.0}
    assert max(abs(obstacle.across) for obstacle in obstacles) <= 0.35
    trees = [tree for _ in range(50) for tree in random_trees(3.0, rng)]
    assert trees
    # The middle of the road is half a lane to the left.
    assert min(abs(tree.across + 1.5) for tree in trees) >= 3.0 + 4
    assert {tree.across > 0 for tree in trees} == {True, False}
