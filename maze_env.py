"""The sparse-reward 2D maze of Section 4.3 and Appendix B.1 as a Gymnasium environment.

A point leaves the centre of the unit square, gets around three walls that open to the left, and finds the goal at the
upper right. The paper gives the numbers and says "three-sided wall in the center"; here these are three sides of the
centre cell of a 3x3 grid, in which start and goal are cell centres too.

    python omnet_sac.py --env-id maze_env:Maze-v0 --learning-starts 1000
"""

import gymnasium as gym
import numpy as np

START, GOAL = np.array([1 / 2, 1 / 2]), np.array([5 / 6, 5 / 6])  # Appendix B.1
GOAL_RADIUS, GOAL_REWARD, MAX_ACTION, MAX_STEPS = 0.1, 100.0, 0.2, 50  # Appendix B.1

WALLS = np.array(  # (7, 2, 2): wall, end, xy
    [
        [[1 / 3, 2 / 3], [2 / 3, 2 / 3]],
        [[2 / 3, 1 / 3], [2 / 3, 2 / 3]],
        [[1 / 3, 1 / 3], [2 / 3, 1 / 3]],
        [[0, 0], [1, 0]],
        [[1, 0], [1, 1]],
        [[0, 1], [1, 1]],
        [[0, 0], [0, 1]],
    ]
)
# Walls are solid this far around their segments, so that a float32 observation still tells on which side one stands.
HALF_THICKNESS = 1e-7
FACES = np.stack([WALLS.min(axis=1) - HALF_THICKNESS, WALLS.max(axis=1) + HALF_THICKNESS], axis=1)  # wall, low/high, xy
ROUNDING = 1e-12  # a face this near is touched, a corner cut this briefly is passed: between float64 and the thickness

SIZE, MARGIN = 480, 12  # pixels
SCALE = SIZE - 2 * MARGIN  # pixels per unit of length
WHITE, BLACK, ORANGE, GREY, BLUE, SKY = np.array(
    [[255, 255, 255], [38, 38, 46], [255, 165, 50], [150, 150, 158], [20, 80, 190], [120, 175, 240]], dtype=np.float64
)


def move(position: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Where a straight move by `action` ends: at position + action, or where it first meets a wall. All (2,) float64.

    The point may slide along a wall or leave it, and goes neither through it nor through its ends and corners.
    """
    gaps = FACES - position
    gaps[np.abs(gaps) < ROUNDING] = 0.0
    with np.errstate(all="ignore"):
        times = gaps / action  # 0/0, sliding along a face, is NaN, and every comparison below is then False
    # Along each axis the move is between a wall's faces for an interval of time; where the two overlap, it is inside.
    enter, leave = times.min(axis=1).max(axis=1), times.max(axis=1).min(axis=1)
    return position + action * np.min(enter, where=(enter >= 0) & (enter + ROUNDING < leave), initial=1.0)


def stroke(canvas: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float, color: np.ndarray) -> None:
    """Paints the points within `radius` of the segment start-end, in place. Canvas: (SIZE, SIZE, 3), by x, y."""
    corners = np.stack([np.minimum(start, end) - radius, np.maximum(start, end) + radius]) * SCALE + MARGIN
    (left, bottom), (right, top) = np.clip(np.rint(corners).astype(int) + [[-1], [1]], 0, SIZE)
    points = (np.stack(np.mgrid[left:right, bottom:top], axis=-1) + 0.5 - MARGIN) / SCALE
    segment = end - start
    along = np.clip((points - start) @ segment / max(segment @ segment, 1e-12), 0, 1)[..., None]
    distance = np.linalg.norm(points - start - along * segment, axis=-1, keepdims=True)
    patch = canvas[left:right, bottom:top]
    patch += np.clip((radius - distance) * SCALE + 0.5, 0, 1) * (color - patch)  # the edge fades over one pixel


class MazeEnv(gym.Env):
    """Observation: the position in [0, 1]^2. Action: the move, at most 0.2 along each axis, clipped. Both (2,) float32.

    A move ends where it first meets a wall. If it ends less than 0.1 from the goal, the reward is 100 and the episode
    terminates; passing by the goal on the way is not enough. All other rewards are 0. After 50 steps, truncated.
    """

    metadata = gym.Env.metadata | {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None):
        self.observation_space = gym.spaces.Box(0.0, 1.0, (2,), np.float32)
        self.action_space = gym.spaces.Box(-MAX_ACTION, MAX_ACTION, (2,), np.float32)
        self.render_mode = render_mode
        self.path = [START]  # the positions of this episode, in float64

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.path = [START]
        return START.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Raises ValueError for an action that is not two numbers."""
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (2,) or np.isnan(action).any():
            raise ValueError(f"a Maze-v0 action is two numbers, not {action}")
        position = move(self.path[-1], np.clip(action, self.action_space.low, self.action_space.high))
        self.path.append(position)
        terminated = bool(np.linalg.norm(position - GOAL) < GOAL_RADIUS)
        return position.astype(np.float32), GOAL_REWARD if terminated else 0.0, terminated, False, {}

    def render(self) -> np.ndarray | None:
        """The map, with the path so far and the position in blue and the goal in orange: (480, 480, 3) uint8."""
        if self.render_mode is None:
            return None
        canvas = np.tile(WHITE, (SIZE, SIZE, 1))
        stroke(canvas, GOAL, GOAL, GOAL_RADIUS, ORANGE)
        for wall in WALLS:
            stroke(canvas, *wall, 0.008, BLACK)
        stroke(canvas, START, START, 0.016, GREY)
        for start, end in zip(self.path, self.path[1:]):
            stroke(canvas, start, end, 0.004, SKY)
        for position in self.path[1:]:
            stroke(canvas, position, position, 0.007, BLUE)
        stroke(canvas, self.path[-1], self.path[-1], 0.018, BLUE)
        return canvas.transpose(1, 0, 2)[::-1].round().astype(np.uint8)  # rows from the top


gym.register("Maze-v0", entry_point=f"{__name__}:MazeEnv", max_episode_steps=MAX_STEPS)
