"""One Meta-World task without vectors: what is mended in it, what its pictures show and where the camera puts things."""

import numpy as np
import pytest
from conftest import COFFEE, DRAWER

from worldenv_cli.envs import metaworld as adapter
from worldenv_cli.envs.camera import CameraConfig
from worldenv_cli.envs.metaworld import MetaWorldConfig, MetaWorldTask, RenderContext, coarsen_meshes, expert
from worldenv_cli.errors import UserError

CONFIG = MetaWorldConfig(tasks={COFFEE: "press it", DRAWER: "close it"}, resolution=64)


@pytest.fixture(scope="module")
def context():
    """A rendering context in this process."""
    return RenderContext(CONFIG)


@pytest.fixture(scope="module", params=[COFFEE, DRAWER])
def task(request, context):
    return MetaWorldTask(request.param, CONFIG)


@pytest.fixture(scope="module")
def coffee(context):
    return MetaWorldTask(COFFEE, CONFIG)


def changed(a, b, by=10):
    """(H, W) bool: pixels that differ visibly."""
    return np.abs(a.astype(int) - b.astype(int)).max(-1) > by


def robot_pixels(task, context, root="base"):
    """(H, W) bool: pixels of the robot from body `root` on, and those beside them, in a segmentation picture of the last rendered scene."""
    import mujoco

    flags = mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR
    for flag in flags:
        task.scene.flags[flag] = True
    colours = draw_scene(task, context).astype(int)
    for flag in flags:
        task.scene.flags[flag] = False
    parents, wanted = task.model.body_parentid, {task.model.body(root).id}
    for body in range(task.model.nbody):  # parents come before their children
        if parents[body] in wanted:
            wanted.add(body)
    drawn = task.scene.geoms[: task.scene.ngeom]
    mine = [geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and task.model.geom_bodyid[geom.objid] in wanted for geom in drawn]
    number = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]  # of the scene's geom, from 1; 0 is background
    arm = np.array([False, *mine])[number]
    return np.array([[arm[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any() for x in range(64)] for y in range(64)])


def draw_scene(task, context, marker=None):
    """The scene as it was last rendered, once more, with a small red ball at `marker` (metres)."""
    import mujoco

    if marker is not None:
        size, ball = np.full(3, 0.012), mujoco.mjtGeom.mjGEOM_SPHERE
        mujoco.mjv_initGeom(task.scene.geoms[task.scene.ngeom], ball, size, np.asarray(marker), np.eye(3).flatten(), np.array([1, 0, 0, 1.0]))
        task.scene.geoms[task.scene.ngeom].emission = 1
        task.scene.ngeom += 1
    upload, viewport = context.of(task.name, task.model), mujoco.MjrRect(0, 0, 64, 64)
    picture = np.empty((64, 64, 3), np.uint8)
    mujoco.mjr_render(viewport, task.scene, upload)
    mujoco.mjr_readPixels(picture, None, viewport, upload)
    return picture[::-1]


def pixels(points):
    """Points (..., 3) in metres through the camera that datasets describe -> (..., 2) pixels, x right and y down."""
    points = np.asarray(points, float)
    matrix = CONFIG.camera.intrinsics(64) @ CONFIG.camera.extrinsics()[:3]
    seen = np.concatenate([points, np.ones_like(points[..., :1])], -1) @ matrix.T
    return seen[..., :2] / seen[..., 2:]


def test_the_first_frame_shows_the_new_layout(task, context):
    """Meta-World's own reset leaves the picture of the episode before: the drawn positions must be those of the new layout."""
    import mujoco

    task.reset(1)
    before, picture_before = task.data.geom_xpos.copy(), task.render(context)
    task.reset(2)
    after, first = task.data.geom_xpos.copy(), task.render(context)
    mujoco.mj_forward(task.model, task.data)
    np.testing.assert_array_equal(after, task.data.geom_xpos)
    np.testing.assert_array_equal(first, task.render(context))
    assert np.abs(after - before).max() > 0.02 and changed(first, picture_before).mean() > 0.03

    arm = robot_pixels(task, context)
    task.step(np.zeros(4))
    later = task.render(context)
    arm |= robot_pixels(task, context)
    assert 0.03 < arm.mean() < 0.6
    assert changed(first, later)[~arm].mean() < 0.004  # the mug settles by some millimetres


def test_a_seed_is_a_layout(task, context):
    """The same seed gives the same start whatever was played before and by whichever instance; other seeds give other starts."""

    def play(task, seed):
        observation = task.reset(seed)
        picture, rng = task.render(context), np.random.default_rng(0)
        return observation, picture, np.stack([task.step(rng.uniform(-1, 1, 4))[0] for _ in range(6)])

    first, others = play(task, 5), [play(task, seed) for seed in (6, 7)]
    for again in (play(task, 5), play(MetaWorldTask(task.name, CONFIG), 5)):
        for a, b in zip(first, again):
            np.testing.assert_array_equal(a, b)
    assert all(changed(first[1], picture).mean() > 0.015 for _, picture, _ in others)


@pytest.mark.filterwarnings("ignore:Constant")
@pytest.mark.parametrize("name", ["reach-v3", "push-v3"])
def test_experts_see_their_goal(name):
    task, player, successes = MetaWorldTask(name, CONFIG), expert(name), []
    for seed in range(4):
        observation = task.reset(seed)
        assert np.abs(observation[-3:]).min() > 0
        np.testing.assert_allclose(observation[-3:], task.env._target_pos)
        np.testing.assert_array_equal(observation[:18], observation[18:36])  # nothing came before the first frame
        reached = False
        for _ in range(32):
            observation, success = task.step(np.clip(player.get_action(observation), -1, 1))
            reached |= success
        successes.append(reached)
    assert sum(successes) >= 3


def test_an_action_is_held_clipped_and_in_metres(coffee):
    coffee.reset(3)
    start, steps = coffee.data.mocap_pos[0].copy(), coffee.env.curr_path_length
    coffee.step(np.array([0.5, 1.0, -1.0, -1.0]))
    assert coffee.env.curr_path_length - steps == CONFIG.action_repeat
    moved = coffee.data.mocap_pos[0] - start
    np.testing.assert_allclose(moved, adapter.METRES_PER_STEP * CONFIG.action_repeat * np.array([0.5, 1.0, -1.0]), atol=1e-9)
    coffee.reset(3)
    once = coffee.step(np.array([1.0, -1.0, 1.0, 1.0]))[0]
    coffee.reset(3)
    np.testing.assert_array_equal(once, coffee.step(np.array([9.0, -2.0, 5.0, 1.5]))[0])


def test_proprioception(coffee):
    coffee.reset(0)
    state = coffee.state()
    assert state.shape == (4,) and state.dtype == np.float32
    np.testing.assert_allclose(state[:3], coffee.env.get_endeff_pos(), atol=1e-6)
    for grip in (-1.0, 1.0):
        for _ in range(5):
            coffee.step(np.array([0, 0, 0, grip]))
        opening = coffee.state()[3]
        assert opening > 0.9 if grip < 0 else 0 <= opening < 0.7


def test_success_in_any_of_the_held_steps_counts(coffee, monkeypatch):
    coffee.reset(0)
    real, flags = coffee.env.step, iter([0.0, 1.0, 0.0, 0.0])
    monkeypatch.setattr(coffee.env, "step", lambda action: (*real(action)[:4], {"success": next(flags)}))
    assert coffee.step(np.zeros(4))[1] is True


def test_the_camera_puts_points_where_they_are_drawn(coffee, context):
    """A ball drawn at a known point appears where intrinsics and extrinsics say, to half a pixel."""
    coffee.reset(0)
    look = np.array(CONFIG.camera.lookat)
    for offset in ([0, 0, 0.3], [0.12, 0, 0.25], [-0.1, 0.1, 0.3], [0, -0.15, 0.25], [0.05, 0.15, 0.2]):
        plain = coffee.render(context)
        marked = draw_scene(coffee, context, look + offset)
        ball = np.argwhere(changed(plain, marked, by=40))[:, ::-1] + 0.5  # (x, y) of pixel centres
        assert len(ball) >= 3
        np.testing.assert_allclose(ball.mean(0), pixels(look + offset), atol=0.6)


def test_the_hand_is_where_proprioception_projects_to(coffee, context):
    """At several poses, the hand's own numbers fall between the rendered fingers, and not between where they were at other poses."""
    coffee.reset(0)
    hands, fingers = [], []
    for action in ([0, 0, 0, -1], [1, 0, 0.5, -1], [-1, 0.5, 0, -1], [-1, 0, -1, 1]):
        for _ in range(5):
            coffee.step(np.array(action))
        coffee.render(context)
        hands.append(pixels(coffee.state()[:3]))
        fingers.append(np.argwhere(robot_pixels(coffee, context, "hand"))[:, ::-1] + 0.5)
    middle = np.array([(drawn.min(0) + drawn.max(0)) / 2 for drawn in fingers])
    distance = np.linalg.norm(np.array(hands)[:, None] - middle[None], axis=-1)  # (hand, fingers)
    assert np.diag(distance).max() < 2.5 and (distance.argmin(1) == np.arange(4)).all()


def test_extrinsics_are_a_rigid_motion_that_looks_at_its_point():
    camera = CameraConfig(azimuth=35, elevation=-20, distance=1.7, lookat=(0.1, 0.2, 0.3))
    matrix = camera.extrinsics()
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix[:3, :3]) == pytest.approx(1)
    np.testing.assert_allclose(matrix @ [*camera.lookat, 1], [0, 0, 1.7, 1], atol=1e-12)
    edge = camera.intrinsics(100) @ [np.tan(np.deg2rad(camera.fovy) / 2), 0, 1]
    np.testing.assert_allclose(edge[:2], [100, 50])


def test_coarser_meshes_change_few_pixels(task, context):
    import mujoco

    task.reset(4)
    picture = task.render(context)
    faces = task.model.mesh_facenum.copy()
    fine = {field: getattr(task.model, field).copy() for field in adapter.MESH_FIELDS}
    shown = draw_scene(task, context)
    np.testing.assert_array_equal(picture, shown)
    kept, context.uploads[task.name] = context.uploads[task.name], mujoco.MjrContext(task.model, mujoco.mjtFontScale.mjFONTSCALE_100)
    try:
        whole = draw_scene(task, context)
    finally:
        context.uploads[task.name] = kept
    assert whole.std() > 10 and changed(whole, picture, by=30).mean() < 0.02
    coarsen_meshes(task.model, context.pixel / 2)
    assert task.model.mesh_facenum.sum() < 0.5 * faces.sum()
    assert (task.model.mesh_facenum >= 1).all() or (faces[task.model.mesh_facenum == 0] == 0).all()
    for field, values in fine.items():
        getattr(task.model, field)[:] = values


def test_meshes_are_as_they_were_after_the_upload(coffee, context):
    fresh = MetaWorldTask(COFFEE, CONFIG)
    context.of(COFFEE, coffee.model)
    for field in adapter.MESH_FIELDS:
        np.testing.assert_array_equal(getattr(coffee.model, field), getattr(fresh.model, field))


def test_geoms_out_of_view_are_left_out_without_a_trace(task, context, monkeypatch):
    task.reset(8)
    picture = task.render(context)
    drawn = task.scene.ngeom
    everything = np.ones(task.model.ngeom, bool)
    monkeypatch.setattr(task, "_in_view", lambda: everything)
    np.testing.assert_array_equal(picture, task.render(context))
    assert drawn < task.scene.ngeom


def test_an_unknown_task_is_told_with_the_nearest_name():
    with pytest.raises(UserError, match=r"env.tasks: Meta-World 3\S* has no task 'cofee-button-v3'; did you mean 'coffee-button-v3'\?"):
        MetaWorldTask("cofee-button-v3", CONFIG)
    with pytest.raises(UserError, match="has no task 'xyz'$"):
        MetaWorldTask("xyz", CONFIG)


def test_rates_and_lengths():
    config = CONFIG.model_copy(update={"action_repeat": 4, "chunk": 4, "horizon": 130})
    assert config.chunks == 8 and config.control_hz == 20
