"""The world simulator: what it starts from, what a step costs whom, what it learns, and how its faithfulness is measured."""

import numpy as np
import pytest
import torch
from conftest import history

from worldenv_cli.models import load_model, save_model
from worldenv_cli.packing import fold, normalised, pack, quantised, shifted, unfold, unpack
from worldenv_cli.simulator.bank import ALIKE, OTHER_SCALE, SAME_SCENE, PoseBank
from worldenv_cli.simulator.conditioning import ActionMaps
from worldenv_cli.simulator.fidelity import fidelity, perceptual_distance, psnr, ssim
from worldenv_cli.simulator.simulator import Simulator
from worldenv_cli.simulator.train import Followed, SimulateConfig, VideoTraining, Windows, train_simulator, video_loss
from worldenv_cli.training import TrainingConfig


def chunks(rows, seed=0, steps=4):
    return np.random.default_rng(seed).uniform(-1, 1, (rows, steps, 4)).astype(np.float32)


def equal_states(a, b, by=1e-5):
    for name, value in vars(a).items():
        other = getattr(b, name)
        assert value.shape == other.shape and value.dtype == other.dtype, name
        if value.dtype == torch.uint8:
            assert torch.equal(value, other), name
        else:
            torch.testing.assert_close(value, other, rtol=0, atol=by, msg=name)


def near(a, b):
    """Pictures that differ by rounding at most."""
    return np.abs(a.astype(int) - b.astype(int)).max() <= 1


# Packing


@pytest.mark.parametrize("shape", [(8, 8, 3), (2, 12, 8, 3), (2, 3, 4, 16, 3)])
@pytest.mark.parametrize("block", [1, 2, 4])
def test_packing_and_back(shape, block):
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    packed = pack(frames, block)
    assert packed.shape == (*shape[:-3], shape[-3] // block, shape[-2] // block, 3 * block**2) and packed.dtype == torch.uint8
    np.testing.assert_array_equal(unpack(packed, block), frames)


def test_packing_keeps_a_block_together():
    frames = np.zeros((8, 8, 3), np.uint8)
    frames[4:6, 2:4, 1] = [[1, 2], [3, 4]]
    packed = pack(frames, 2)
    assert packed[2, 1].tolist() == [0] * 4 + [1, 2, 3, 4] + [0] * 4 and packed.sum() == 10


def test_a_picture_survives_normalising():
    levels = torch.arange(256, dtype=torch.uint8)
    torch.testing.assert_close(normalised(levels)[[0, 255]], torch.tensor([-1.0, 1.0]))
    assert torch.equal(quantised(normalised(levels)), levels)
    assert quantised(torch.tensor([-1.0, 1.0])).tolist() == [0, 255]


def test_shifting_repeats_the_edges():
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 5, 5, 3), dtype=np.uint8)
    offsets = np.array([[0, 0], [2, -1], [-2, 2]])
    moved = shifted(frames, offsets)
    for i, (y, x) in enumerate(offsets):
        rows, columns = (np.clip(np.arange(5) + step, 0, 4) for step in (y, x))
        np.testing.assert_array_equal(moved[i], frames[i][:, rows][:, :, columns])


# Conditions


def test_action_maps_mark_the_hand_and_its_foot(mini):
    camera = mini.env.camera
    maps = ActionMaps(camera.intrinsics(64), camera.extrinsics(), 64, 4, (0.0, 0.0, 0.0, 1.0), 0.0)
    states = torch.tensor([[[0.0, 0.65, 0.1, 1.0], [0.05, 0.7, 0.15, 0.25]]])  # (1, 2, 4)
    drawn = maps(states)
    assert drawn.shape == (1, 2, 16, 16, 3) and 0 <= drawn.min() and drawn.max() <= 1
    for n in range(2):
        for channel, point in ((0, states[0, n, :3]), (2, states[0, n, :3] * torch.tensor([1, 1, 0]))):
            x, y = (maps.projection @ torch.cat([point, torch.ones(1)])).div(1).numpy()[:2] / (maps.projection @ torch.cat([point, torch.ones(1)]))[
                2
            ].item()
            weight = drawn[0, n, ..., channel]
            total, grid = weight.sum(), torch.arange(16) + 0.5
            assert abs((weight.sum(0) * grid).sum() / total * 4 - x) < 0.5 and abs((weight.sum(1) * grid).sum() / total * 4 - y) < 0.5
        torch.testing.assert_close(drawn[0, n, ..., 1], drawn[0, n, ..., 0] * states[0, n, 3])


# The bank of poses


def filled(size, frames, states, first, places=None):
    """A bank of pictures of 8 x 8 pixels, packed in blocks of 2; without `places` no picture is ever moved."""
    bank = PoseBank(size, 8, 2, torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])))
    bank.fill(frames, states, torch.zeros(len(states), 2) if places is None else places, first, torch.Generator().manual_seed(0))
    return bank


def plain(values):
    """One packed picture of a single colour for each value."""
    return torch.as_tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 4, 12).contiguous()


@pytest.mark.parametrize("size", [20, 60, 200])
def test_the_bank_gives_the_frame_of_the_nearest_pose(size):
    """Distances are metres, the gripper counts little; an empty place is never the nearest, and neither is a frame of the same scene."""
    generator = torch.Generator().manual_seed(1)
    states, scenes = torch.rand(60, 4, generator=generator), torch.arange(60) // 6 * 20
    bank = filled(size, plain(range(60)), states, plain(scenes))
    kept = sorted({int(frame) for frame in bank.frames[: min(size, 60), 0, 0, 0]})
    assert len(kept) == min(size, 60)
    asked, begun = torch.rand(7, 5, 4, generator=generator), torch.tensor([0, 60, 180, 60, 250, 40, 160])
    scale = torch.tensor([1.0, 1.0, 1.0, OTHER_SCALE])
    found = bank.nearest(asked, torch.zeros(7, 5, 2), bank.scene_distance(plain(begun)))
    assert found.shape == (7, 5, ALIKE, 4, 4, 12) and found.dtype == torch.uint8
    for row in range(7):
        allowed = [n for n in kept if scenes[n] != begun[row]]
        for t in range(5):
            distance = ((states[allowed] - asked[row, t]) * scale).norm(dim=1)
            chosen = allowed.index(int(found[row, t, 0, 0, 0, 0]))
            assert distance[chosen] <= distance.min() + 1e-3
    own = bank.nearest(states[None, kept], torch.zeros(1, len(kept), 2), bank.scene_distance(plain([250])))
    np.testing.assert_array_equal(own[0, :, 0, 0, 0, 0], kept)  # a frame's own pose gives that frame, where it began otherwise


def test_the_second_frame_comes_from_a_scene_that_began_alike():
    """The nearest pose belongs to a dark scene; who begins in a bright one gets the next nearest, which does too."""
    states = torch.tensor([[0.0, 0.5, 0.2, 1.0], [0.01, 0.5, 0.2, 1.0], [0.5, 0.5, 0.2, 1.0]])
    bank = filled(10, plain([1, 2, 3]), states, plain([0, 255, 255]))
    found = bank.nearest(states[:1].expand(2, 1, 4), torch.zeros(2, 1, 2), bank.scene_distance(plain([10, 250])))
    assert found[:, 0, :, 0, 0, 0].tolist() == [[1, 1], [1, 2]]


def test_pictures_are_moved_to_where_the_hand_will_be():
    picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    bank = PoseBank(5, 64, 4, torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])))
    packed = fold(picture, 4)
    bank.fill(packed, torch.zeros(1, 4), torch.tensor([[20.0, 30.0]]), packed, torch.Generator())
    unlike = bank.scene_distance(255 - packed)
    found = bank.nearest(torch.zeros(1, 1, 4), torch.tensor([[[23.2, 28.6]]]), unlike)  # 3 pixels to the right, 1 up
    moved = unfold(found[0, 0, 0], 4)
    torch.testing.assert_close(moved[:, :-1, 3:], picture[0, :, 1:, :-3])
    torch.testing.assert_close(moved[:, -1, 3:], picture[0, :, -1, :-3])  # edges are repeated
    far = bank.nearest(torch.zeros(1, 1, 4), torch.tensor([[[64.0, 30.0]]]), unlike)
    torch.testing.assert_close(unfold(far[0, 0, 0], 4)[:, :, 8:], picture[0, :, :, :-8])  # at most an eighth of the picture


def test_an_episode_is_never_looked_up_in_itself(simulator, demonstrations):
    """Neither in training, where it would be the answer, nor in replays of training episodes; and no two episodes begin alike."""
    windows = Windows(demonstrations, "front", 4, simulator.config.unet.memory, 4)
    windows.fill(simulator.bank, simulator.maps, 0)
    places = windows.draw(np.random.default_rng(0), 20)
    first, target = windows.first(places), windows.target(places)
    given = simulator.conditions(windows.recent(places), first, windows.states(places), simulator.bank.scene_distance(first))
    alike = given.pictures.split(simulator.unet.parts, -1)[2].unflatten(-1, (4, ALIKE, -1))[..., 0, :].movedim(-2, 1)  # (B, T, h, w, P)
    assert not any(torch.equal(frame, real) for row, wanted in zip(alike, normalised(target)) for frame, real in zip(row, wanted))
    scenes = simulator.bank.scenes[: sum(len(e.states) for e in demonstrations)].unique(dim=0)
    assert len(scenes) == len(demonstrations) and torch.pdist(scenes).min() > 2 * SAME_SCENE


# Starting


def test_a_short_history_is_padded_by_its_first_frame(simulator, demonstrations):
    """The first frame stands in for those before it, as in training."""
    episode, reach, block = demonstrations[0], simulator.reach, simulator.config.unet.block
    for moment in (0, 3, reach + 4):
        state = simulator.start([history(episode, moment)])
        numbers = [max(moment - reach + 1 + i, 0) for i in range(reach)]
        assert torch.equal(state.recent[0], pack(episode.frames["front"][numbers], block))
        assert torch.equal(state.first[0], pack(episode.frames["front"][0], block))
        np.testing.assert_array_equal(state.state[0], episode.states[moment])


def test_a_long_history_is_its_recent_frames_and_its_first(simulator, demonstrations):
    """What lies between the first frame and the memory's reach cannot be seen."""
    episode, moment = demonstrations[2], 14
    forgotten = history(episode, moment)
    forgotten.frames = forgotten.frames.copy()
    forgotten.frames[1 : moment + 1 - simulator.reach] = 0
    equal_states(simulator.start([history(episode, moment)]), simulator.start([forgotten]), by=0)
    forgotten.frames[0] = 0
    with pytest.raises(AssertionError):
        equal_states(simulator.start([history(episode, moment)]), simulator.start([forgotten]))


def test_histories_of_different_lengths_start_as_they_would_alone(simulator, demonstrations):
    mixed = [history(demonstrations[0], 5), history(demonstrations[1], 0), history(demonstrations[2], 11), history(demonstrations[3], 1)]
    together = simulator.start(mixed)
    for row, one in enumerate(mixed):
        equal_states(together.rows([row]), simulator.start([one]))


def test_the_controllers_memory_follows_the_logged_states(simulator, demonstrations):
    """The proprioception model is led along what really happened, not along its own prediction."""
    episode, body = demonstrations[0], simulator.proprioception
    with torch.no_grad():
        scene = body.look(normalised(pack(episode.frames["front"][:1], simulator.config.unet.block)))
        memory = body.begin(torch.from_numpy(episode.states[:1]))
        for t in range(6):
            _, memory = body.step(torch.from_numpy(episode.states[t : t + 1]), torch.from_numpy(episode.actions[t : t + 1]), memory, scene)
    torch.testing.assert_close(simulator.start([history(episode, 6)]).memory, memory, rtol=0, atol=1e-5)


# Stepping


def test_a_step_makes_frames_and_states(simulator, demonstrations):
    state = simulator.start([history(episode) for episode in demonstrations])
    made, states, after = simulator.step(state, chunks(4))
    assert set(made) == {"front"} and made["front"].shape == (4, 4, 32, 32, 3) and made["front"].dtype == np.uint8
    assert states.shape == (4, 4, 4) and states.dtype == np.float32 and np.isfinite(states).all()
    remembered = torch.cat([state.recent, pack(made["front"], simulator.config.unet.block)], 1)[:, -simulator.reach :]
    assert torch.equal(after.recent, remembered) and torch.equal(after.first, state.first)
    np.testing.assert_array_equal(after.state, states[:, -1])
    equal_states(state, simulator.start([history(episode) for episode in demonstrations]))  # what it started from is untouched


def test_two_steps_are_not_the_first_twice(simulator, demonstrations):
    """The second step goes on from the imagined frames."""
    state = simulator.start([history(demonstrations[0])])
    first, _, after = simulator.step(state, chunks(1))
    second, states, _ = simulator.step(after, chunks(1))
    assert not near(first["front"], second["front"]) or not np.allclose(states[:, 0], simulator.step(state, chunks(1))[1][:, 0])


def test_regression_is_deterministic_and_flow_is_not(simulator, simulator_config, demonstrations):
    histories = [history(episode) for episode in demonstrations]
    state = simulator.start(histories)
    for a, b in zip(simulator.step(state, chunks(4))[:2], simulator.step(state, chunks(4))[:2]):
        np.testing.assert_array_equal(a["front"] if isinstance(a, dict) else a, b["front"] if isinstance(b, dict) else b)

    torch.manual_seed(0)
    flow = Simulator(simulator_config.model_copy(update={"unet": simulator_config.unet.model_copy(update={"objective": "flow"})})).eval()
    state = flow.start(histories)

    def step(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        made, states, _ = flow.step(state, chunks(4))
        return made["front"], states

    (a, states), (b, other_states) = step(), step()
    assert (np.abs(a.astype(int) - b).max((1, 2, 3, 4)) > 2).all()  # fresh noise for every row at every call
    np.testing.assert_array_equal(states, other_states)  # the arm is not a matter of chance
    np.testing.assert_array_equal(step(3)[0], step(3)[0])
    rows = flow.start([histories[0]] * 3)
    twins = flow.step(rows, np.repeat(chunks(1), 3, 0))[0]["front"]
    assert not np.array_equal(twins[0], twins[1])


def test_actions_are_clipped_as_the_environment_clips_them(simulator, demonstrations):
    state, wild = simulator.start([history(demonstrations[0])]), 5 * chunks(1)
    a, b = simulator.step(state, wild), simulator.step(state, np.clip(wild, -1, 1))
    np.testing.assert_array_equal(a[0]["front"], b[0]["front"])
    np.testing.assert_array_equal(a[1], b[1])


def test_actions_matter_to_every_later_state(simulator, demonstrations):
    state, plain = simulator.start([history(demonstrations[0])]), chunks(1)
    _, before, _ = simulator.step(state, plain)
    for t in range(4):
        other = plain.copy()
        other[0, t, 0] = -np.sign(other[0, t, 0])
        _, after, _ = simulator.step(state, other)
        moved = np.abs(after - before).max((0, 2)) > 1e-6
        assert moved.tolist() == [k >= t for k in range(4)]


def test_rows_that_leave_do_not_change_the_others(simulator, demonstrations):
    histories = [history(demonstrations[0]), history(demonstrations[1], 5), history(demonstrations[2], 9), history(demonstrations[3])]
    whole = simulator.start(histories)
    part = whole
    stay = np.array([0, 2, 3])
    for step in range(4):
        if step == 1:
            part = part.rows(torch.tensor([True, False, True, True]))
        if step == 2:
            part, stay = part.rows(torch.tensor([2, 0])), stay[[2, 0]]  # reordered as well
        given = chunks(4, seed=step)
        made, states, whole = simulator.step(whole, given)
        rows = np.arange(4) if step == 0 else stay
        made_part, states_part, part = simulator.step(part, given[rows])
        assert near(made["front"][rows], made_part["front"])
        np.testing.assert_allclose(states[rows], states_part, atol=1e-5)


# Replays


def test_replays_of_ragged_lengths(simulator, demonstrations):
    """Every row ends with its own actions, a part of a chunk included, and is what it would be alone."""
    lengths, moments = [3, 9, 1, 12], [0, 2, 5, 0]
    histories = [history(episode, moment) for episode, moment in zip(demonstrations, moments)]
    actions = [chunks(1, seed=n, steps=n)[0] for n in lengths]
    replays = simulator.replay(histories, actions)
    for one, given, (frames, states) in zip(histories, actions, replays):
        assert frames.shape == (len(given) + 1, 32, 32, 3) and states.shape == (len(given) + 1, 4) and frames.dtype == np.uint8
        np.testing.assert_array_equal(frames[0], one.frames[-1])
        np.testing.assert_array_equal(states[0], one.states[-1])
        (alone, alone_states) = simulator.replay([one], [given])[0]
        assert near(frames, alone)
        np.testing.assert_allclose(states, alone_states, atol=1e-5)
    frames, states = replays[3]
    state = simulator.start(histories[3:])
    for n in range(3):
        made, rolled, state = simulator.step(state, actions[3][None, 4 * n : 4 * n + 4])
        assert near(frames[1 + 4 * n : 5 + 4 * n], made["front"][0])
        np.testing.assert_allclose(states[1 + 4 * n : 5 + 4 * n], rolled[0], atol=1e-5)


# Training


def test_training_windows_are_what_steps_see(demonstrations):
    """First frame, memory, a chunk: cut from the episodes as `start` would remember them."""
    windows = Windows(demonstrations, "front", 4, (0, 1, 6), 4)
    assert len(windows.places) == sum(len(e.actions) - 3 for e in demonstrations)
    places = windows.draw(np.random.default_rng(0), 50)
    first, recent, states, target = windows.first(places), windows.recent(places), windows.states(places), windows.target(places)
    assert recent.shape == (50, 7, 8, 8, 48) and states.shape == (50, 5, 4) and target.shape == (50, 4, 8, 8, 48)
    for row, (e, t) in enumerate(places):
        frames = demonstrations[e].frames["front"]
        np.testing.assert_array_equal(unpack(first[row], 4), frames[0])
        np.testing.assert_array_equal(unpack(recent[row], 4), frames[[max(t - 6 + i, 0) for i in range(7)]])
        np.testing.assert_array_equal(unpack(target[row], 4), frames[t + 1 : t + 5])
        np.testing.assert_array_equal(states[row], demonstrations[e].states[t : t + 5])


def test_followed_episodes_go_on_from_what_was_made_and_begin_anew_when_they_end(demonstrations):
    windows, rng = Windows(demonstrations, "front", 4, (0, 1, 6), 4), np.random.default_rng(1)
    followed = Followed(windows, 6, rng)
    assert not (followed.places[:, 1] % 4).any() and torch.equal(followed.carried["recent"], windows.recent(followed.places))
    began = 0
    for number in range(12):
        before, recent = followed.places.copy(), followed.carried["recent"].clone()
        made = torch.full((6, 4, 8, 8, 48), number, dtype=torch.uint8)
        followed.advance(made, rng)
        for row, (e, t) in enumerate(before):
            now = followed.carried["recent"][row]
            if t + 8 <= len(demonstrations[e].actions):
                assert followed.places[row].tolist() == [e, t + 4]
                assert torch.equal(now[3:], made[row]) and torch.equal(now[:3], recent[row, 4:])
            else:
                began += 1
                assert followed.places[row][1] == 0 and torch.equal(now, windows.recent(followed.places[row : row + 1])[0])
    assert began


@pytest.mark.parametrize("objective", ["regression", "flow"])
def test_own_frames_come_after_a_third_of_the_training(simulator_config, demonstrations, objective):
    """Then each step's followed rows have the past that the step before made."""
    config = simulator_config.model_copy(update={"unet": simulator_config.unet.model_copy(update={"objective": objective})})
    settings = SimulateConfig(video=TrainingConfig(steps=30, batch=5), own_frames=0.4)
    video = VideoTraining(Simulator(config), demonstrations, settings, 0)
    kept = {name: tensor.clone() for name, tensor in video.followed.carried.items()}
    assert kept["places"].shape == (2, 2)
    video.loss(9, np.random.default_rng(0))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in video.followed.carried.items())
    video.loss(10, np.random.default_rng(0))
    assert all((row != before).any() for row, before in zip(video.followed.places, kept["places"].numpy()))


@pytest.mark.parametrize("share, own", [(0.0, 0), (0.99, 3)])
def test_training_without_own_frames_and_with_hardly_any_others(simulator_config, demonstrations, share, own):
    settings = SimulateConfig(video=TrainingConfig(steps=3, batch=4), own_frames=share)
    video = VideoTraining(Simulator(simulator_config), demonstrations, settings, 0)
    assert video.followed.rows == own and torch.isfinite(video.loss(2, np.random.default_rng(0))[0])


def short(proprioception, video):
    return SimulateConfig(
        proprioception=TrainingConfig(steps=proprioception, batch=8, learning_rate=0.01, weight_decay=0.0, average=0.5),
        video=TrainingConfig(steps=video, batch=4, learning_rate=3e-3, weight_decay=0.0, average=0.5),
    )


def video_error(simulator, episodes):
    """The training loss on a fixed batch, with fixed noise."""
    windows = Windows(episodes, "front", 4, simulator.config.unet.memory, simulator.config.unet.block)
    torch.manual_seed(0)
    with torch.no_grad():
        places = windows.draw(np.random.default_rng(5), 32)
        batch = windows.recent(places), windows.first(places), windows.states(places), windows.target(places)
        return video_loss(simulator, *batch, SimulateConfig(context_noise=0), 0, np.random.default_rng(0))[0].item()


@pytest.mark.parametrize("objective", ["regression", "flow"])
def test_training_lowers_the_losses(simulator_config, demonstrations, trained_policy, objective):
    """Of the pictures, by either objective; and the hand comes closer to where it really was, open loop over the whole episode."""
    torch.manual_seed(0)
    config = simulator_config.model_copy(update={"unet": simulator_config.unet.model_copy(update={"objective": objective})})
    simulator = Simulator(config)
    train_simulator(simulator, demonstrations, short(1, 1), seed=0)
    hand, pictures = fidelity(simulator.eval(), demonstrations, trained_policy)["hand_error_mm"], video_error(simulator, demonstrations)
    train_simulator(simulator, demonstrations, short(30, 30), seed=0)
    found = fidelity(simulator.eval(), demonstrations, trained_policy)
    assert np.mean(found["hand_error_mm"]) < 0.3 * np.mean(hand)
    assert video_error(simulator, demonstrations) < 0.95 * pictures
    assert np.isfinite(found["simulator"]["psnr"]).all()


def test_training_on_keeps_its_statistics(simulator, explored):
    """A refreshed simulator reads its numbers as before; only an untrained one takes them from the episodes."""
    body = simulator.proprioception
    kept = {name: value.clone() for name, value in body.named_buffers()}
    states = np.concatenate([episode.states for episode in explored])
    assert (kept["low"].numpy() < states.min(0)).all() and (kept["high"].numpy() > states.max(0)).all()
    train_simulator(simulator, explored[:1], short(1, 1), seed=0)
    for name, value in body.named_buffers():
        assert torch.equal(value, kept[name]), name


def test_what_is_loaded_is_what_was_saved(tmp_path, simulator, demonstrations):
    tmp_path.joinpath("s").mkdir()
    save_model(tmp_path / "s", "simulator", simulator, {}, "# A simulator")
    loaded = load_model(tmp_path / "s", "simulator")
    assert loaded.config == simulator.config and not loaded.training
    histories = [history(episode, 3) for episode in demonstrations]
    (a, states, _), (b, other, _) = (s.step(s.start(histories), chunks(4)) for s in (simulator, loaded))
    assert near(a["front"], b["front"])
    np.testing.assert_allclose(states, other, atol=1e-6)


# Fidelity


def test_fidelity_counts_whole_chunks_by_horizon(simulator, demonstrations, trained_policy):
    found = fidelity(simulator, demonstrations, trained_policy)
    lengths = [len(e.actions) for e in demonstrations]
    assert found["horizon"] == list(range(1, max(lengths) // 4 + 1)) and found["n_episodes"] == 4
    assert found["n_by_chunk"] == [sum(length >= 4 * n for length in lengths) for n in found["horizon"]]
    second = [e for e in demonstrations if len(e.actions) >= 8]
    copied = np.mean([psnr(e.frames["front"][5:9], np.repeat(e.frames["front"][:1], 4, 0)) for e in second])
    assert found["copy"]["psnr"][1] == pytest.approx(copied, abs=1e-3)
    replay = [simulator.replay([history(e)], [e.actions])[0] for e in second]
    assert found["simulator"]["psnr"][1] == pytest.approx(
        np.mean([psnr(f[5:9], e.frames["front"][5:9]) for (f, _), e in zip(replay, second)]), abs=0.05
    )
    drift = [np.abs(s - e.states)[5:9, :3].mean() for (_, s), e in zip(replay, second)]
    assert found["hand_error_mm"][1] == pytest.approx(1000 * np.mean(drift), rel=1e-3)
    assert all(len(values) == len(found["horizon"]) for kind in ("simulator", "copy", "shuffled_actions") for values in found[kind].values())
    assert found["perceptual_name"]


def test_psnr_and_ssim():
    rng = np.random.default_rng(0)
    a = rng.integers(40, 200, (2, 32, 32, 3), dtype=np.uint8)
    assert ssim(a, a) == pytest.approx([1, 1], abs=1e-5) and psnr(a, a).min() > 70
    b = a.copy()
    b[1] += 10
    assert psnr(a, b)[1] == pytest.approx(20 * np.log10(255 / 10), abs=1e-4)
    noisy = np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    assert (ssim(a, noisy) < 0.95).all() and (ssim(a, noisy) < ssim(a, b)).all()


def test_perceptual_distance_orders_pictures(trained_policy, demonstrations):
    distance, name = perceptual_distance(trained_policy)
    frames = demonstrations[0].frames["front"]
    assert distance(frames, frames) == 0 and name
    noise = np.random.default_rng(0).normal(0, 1, frames.shape)
    near, far = (np.clip(frames + size * noise, 0, 255).astype(np.uint8) for size in (5, 60))
    assert 0 < distance(frames, near) < distance(frames, far)
