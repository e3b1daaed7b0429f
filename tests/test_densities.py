"""Action densities: what is sampled is what is scored."""

import numpy as np
import pytest
import torch
from scipy import stats

from worldenv_cli.policies.compact import CompactPolicy
from worldenv_cli.policies.densities import FlowDensity, LaplaceDensity, TokenDensity, sde_step
from worldenv_cli.policies.observation import Observation
from worldenv_cli.policies.policy import rows_of

MANY = 100_000
MEAN = torch.tensor([[[0.3, -0.8], [0.1, 0.9], [-0.4, 0.0]]])  # (1, T 3, A 2)
SCALE = torch.tensor([[[0.05, 0.2], [0.1, 0.03], [0.15, 0.08]]])


def density(shared, mean=MEAN, scale=SCALE, rows=MANY):
    return LaplaceDensity(mean.expand(rows, -1, -1), scale.expand(rows, -1, -1), shared)


def sampled(d, seed=0):
    return d.sample(torch.Generator().manual_seed(seed))


def expect(values, wanted):
    """The mean of independent values (N,) is the wanted one, within four of its standard errors."""
    values = values.double()
    assert (
        abs(values.mean().item() - wanted) <= 4 * values.std().item() / len(values) ** 0.5 + 1e-6
    )  # float32's own rounding, where densities are equal


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.5])
def test_samples_have_the_scored_density(shared):
    """The expected ratio to any other density is one, after every number of played steps, only if sampling and scoring are the same."""
    chunk, other = sampled(density(shared)), density(shared, MEAN + 0.02, SCALE * 1.1)
    score = density(shared).log_prob(chunk)
    assert score.shape == (MANY, 3)
    for t in range(3):
        expect((other.log_prob(chunk) - score)[:, : t + 1].sum(1).exp(), 1.0)
    if shared == 0:
        for t in range(3):
            for a in range(2):
                assert stats.kstest(((chunk - MEAN) / SCALE)[:, t, a].numpy(), "laplace").pvalue > 1e-3
            expect(-score[:, t], (1 + torch.log(2 * SCALE[0, t])).sum().item())  # the entropy of a Laplace is 1 + log 2b


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_marginal_histogram(shared):
    """The density of one action is that of the histogram."""
    chunk = sampled(density(shared, MEAN[:, :1, :1], SCALE[:, :1, :1]))
    edges = np.linspace(0.1, 0.5, 41)
    counts, _ = np.histogram(chunk.flatten().numpy(), edges)
    points = torch.tensor((edges[1:] + edges[:-1]) / 2).float()[:, None, None]
    expected = density(shared, MEAN[:, :1, :1], SCALE[:, :1, :1], rows=40).log_prob(points).exp()[:, 0].numpy() * 0.01
    assert np.abs(counts / MANY - expected).max() < 4 * np.sqrt(expected.max() / MANY) + 0.05 * expected.max()


def integrated(chunk, shared, steps):
    """Log density of the first steps of one action dimension's chunk, by summing over a grid of the shared noise: (B,)."""
    z = np.linspace(-80, 80, 800_001)
    mean, scale = (values[0, :steps, 0].double().numpy() for values in (MEAN, SCALE))
    found = []
    for row in chunk[:, :steps, 0].double().numpy():
        given = [stats.laplace.pdf(row[t], mean[t] + shared * scale[t] * z, scale[t]) for t in range(steps)]
        found.append(np.log(np.sum(stats.laplace.pdf(z) * np.prod(given, 0)) * (z[1] - z[0])))
    return np.array(found)


@pytest.mark.parametrize("shared", [0.5, 0.7, 1.5])  # with 0.5 two steps and the shared noise can pull with equal force
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_score_is_the_integral_over_the_shared_noise(shared, steps):
    d = density(shared, MEAN[..., :1], SCALE[..., :1], rows=8)
    chunk = sampled(d)
    chunk[0], chunk[1] = MEAN[0, :, :1], MEAN[0, :, :1] + 0.5  # knots that coincide; and far out
    np.testing.assert_allclose(d.log_prob(chunk)[:, :steps].sum(1).numpy(), integrated(chunk, shared, steps), rtol=2e-5, atol=2e-5)


def test_gradient_of_the_score():
    chunk = sampled(density(0.7, rows=2), seed=4).double()
    mean, scale = (values.double().expand(2, -1, -1).clone().requires_grad_() for values in (MEAN, SCALE))
    assert torch.autograd.gradcheck(lambda m, b: LaplaceDensity(m, b, 0.7).log_prob(chunk), (mean, scale))
    far = LaplaceDensity(MEAN.clone().requires_grad_(), SCALE, 0.7)
    far.log_prob(MEAN + 1e3).sum().backward()
    assert far.mean.grad.isfinite().all()


def test_what_is_shared_is_credited():
    """An estimate of the gradient from rewards that depend on a chunk's sum spreads less than with the shared noise taken as given."""
    d = density(0.7, torch.zeros(1, 4, 1), torch.full((1, 4, 1), 0.1))
    z, own = (torch.distributions.Laplace(0.0, 1.0).sample((MANY, steps, 1)) for steps in (1, 4))
    chunk = 0.1 * (0.7 * z + own)
    mean = d.mean.clone().requires_grad_()
    LaplaceDensity(mean, d.scale, 0.7).log_prob(chunk).sum().backward()
    reward = chunk.sum((1, 2))  # moves by the number of steps when the mean does
    estimates = {"integrated": (reward * mean.grad.sum((1, 2))), "given": (reward * (own.sign() / 0.1).sum((1, 2)))}
    for found in estimates.values():
        expect(found, 4.0)
    assert estimates["integrated"].var() < 0.6 * estimates["given"].var()


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_noise_is_shared_along_the_chunk(shared):
    chunk = sampled(density(shared))
    noise = ((chunk - MEAN) / SCALE).double()
    found = np.corrcoef(noise[:, :, 0].numpy(), rowvar=False)
    np.testing.assert_allclose(found[~np.eye(3, dtype=bool)], shared**2 / (1 + shared**2), atol=0.015)
    assert abs(np.corrcoef(noise[:, 0, 0], noise[:, 0, 1])[0, 1]) < 0.015  # but not between action dimensions
    np.testing.assert_allclose(noise.var((0)).numpy(), 2 * (1 + shared**2), rtol=0.05)


def test_sampling_is_seeded_and_scale_zero_is_the_mean():
    d = density(0.7, rows=5)
    torch.testing.assert_close(sampled(d, 1), sampled(d, 1), rtol=0, atol=0)
    assert not torch.equal(sampled(d, 1), sampled(d, 2))
    torch.testing.assert_close(density(0.7, scale=torch.zeros_like(SCALE), rows=5).sample(), MEAN.expand(5, -1, -1))


@pytest.mark.parametrize("shift, stretch", [(0.0, 1.0), (0.03, 1.0), (0.0, 1.5), (-0.04, 0.6)])
def test_kl_against_sampling(shift, stretch):
    """KL of the steps' own noise: what remains when no noise is shared."""
    p, q = density(0.0), density(0.0, MEAN + shift, SCALE * stretch)
    chunk = sampled(p)
    found = p.kl(q)[0]
    for t in range(3):
        expect((p.log_prob(chunk) - q.log_prob(chunk))[:, t], found[t].item())
    assert (found >= 0).all() and (p.kl(p)[0].abs() < 1e-6).all()


def given(d, z):
    """The density of a chunk once its shared noise is known."""
    return LaplaceDensity(d.mean + d.shared * d.scale * z, d.scale, 0.0)


@pytest.mark.parametrize("shift", [0.03, 0.0])
@pytest.mark.parametrize("stretch", [1.0, 0.8, 1.25, 1.5, 1 + 1 / 0.7])  # the last one is the hole of the formula, s = b
def test_kl_with_shared_noise(shift, stretch):
    """Averaged over the shared noise, with which the centres move by r (b - b') z; never less than what the chunks themselves tell apart."""
    rows = 200_000
    mean, scale = torch.zeros(1, 1, 1), torch.full((1, 1, 1), 0.1)
    p = LaplaceDensity(mean.expand(rows, -1, -1), scale.expand(rows, -1, -1), 0.7)
    q = LaplaceDensity((mean + shift).expand(rows, -1, -1), (stretch * scale).expand(rows, -1, -1), 0.7)
    z = torch.distributions.Laplace(0.0, 1.0).sample((rows, 1, 1))
    chunk = given(p, z).sample(torch.Generator().manual_seed(0))
    expect((given(p, z).log_prob(chunk) - given(q, z).log_prob(chunk)).sum(1), p.kl(q)[0].sum().item())
    apart = (p.log_prob(chunk) - q.log_prob(chunk)).sum(1)
    assert apart.mean() < p.kl(q)[0].sum() + 4 * apart.std() / rows**0.5 + 1e-6


def pictures(policy, rows=12):
    """Observations of noise: what an action's density is must not depend on what is seen."""
    rng, size = np.random.default_rng(0), policy.config.resolution
    images = rng.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    words = ["close the drawer", "press the button"]
    return Observation({"front": images}, rng.standard_normal((rows, 4)).astype(np.float32), [words[i % 2] for i in range(rows)])


def seen(policy, obs):
    return policy.density(policy.encode(obs), {})


@pytest.fixture
def fresh_policy(mini):
    torch.manual_seed(0)
    return CompactPolicy(mini.policy).eval()


def test_what_the_policy_samples_is_what_it_scores(fresh_policy):
    """PPO's ratio of a policy that has not moved is one, in the batch that acted and in minibatches of other sizes and orders."""
    obs = pictures(fresh_policy)
    act = fresh_policy.act(obs, explore=True, generator=torch.Generator().manual_seed(0))
    assert act.chunk.shape == (12, 4, 4) and act.log_prob.shape == (12, 4)
    for rows in (np.arange(12), np.random.default_rng(1).permutation(12)[:5], np.array([7])):
        score = fresh_policy.log_prob(obs.rows(rows), rows_of(act.trace, rows))
        assert score.requires_grad
        np.testing.assert_allclose(np.exp(score.detach().numpy() - act.log_prob[rows]), 1, atol=1e-4)
    again = fresh_policy.act(obs, explore=True, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(again.chunk, act.chunk)


def test_acting_without_exploration_is_the_mean(fresh_policy):
    obs = pictures(fresh_policy)
    act = fresh_policy.act(obs, explore=False)
    np.testing.assert_allclose(act.chunk, seen(fresh_policy, obs).mean.detach().numpy(), atol=1e-5)
    still = fresh_policy.act(obs, explore=True, scale=np.full(12, 1e-6))
    np.testing.assert_allclose(still.chunk, act.chunk, atol=1e-4)


def test_given_scale_replaces_the_head(fresh_policy):
    obs = pictures(fresh_policy, rows=2).rows(np.repeat([0, 1], 200))
    scale = np.repeat([0.02, 0.5], 200)
    act = fresh_policy.act(obs, explore=True, scale=scale, generator=torch.Generator().manual_seed(0))
    spread = (act.chunk - fresh_policy.act(obs, explore=False).chunk).reshape(2, -1).std(1)
    np.testing.assert_allclose(spread, np.array([0.02, 0.5]) * np.sqrt(2 * (1 + 0.7**2)), rtol=0.1)


@pytest.mark.parametrize("push", [-1e3, -3.0, 0.0, 3.0, 1e3])
def test_scale_stays_between_its_bounds(fresh_policy, push):
    config = fresh_policy.config
    with torch.no_grad():
        fresh_policy.scale_head[-1].bias.fill_(push)
    scale = seen(fresh_policy, pictures(fresh_policy)).scale
    assert (scale >= config.scale_min * (1 - 1e-5)).all() and (scale <= config.scale_max * (1 + 1e-5)).all()
    scale.sum().backward()
    assert abs(push) > 100 or fresh_policy.scale_head[-1].bias.grad.abs().min() > 0


def test_a_generator_for_each_row_gives_each_row_its_own_noise():
    rows = density(0.7, rows=3)
    seeded = [torch.Generator().manual_seed(seed) for seed in (5, 6, 7)]
    alone = density(0.7, rows=1).sample(torch.Generator().manual_seed(6))
    torch.testing.assert_close(rows.sample(seeded)[1:2], alone)


# Tokens


def test_tokens_are_drawn_as_often_as_they_are_scored():
    logits = torch.randn(1, 2, 3, 256, generator=torch.Generator().manual_seed(0)) * 2
    many = TokenDensity(logits.expand(MANY // 10, -1, -1, -1))
    drawn = many.sample(torch.Generator().manual_seed(1))
    assert drawn.shape == (MANY // 10, 2, 3) and drawn.min() >= 0 and drawn.max() <= 255
    for t in range(2):
        for a in range(3):
            expected = logits[0, t, a].double().softmax(-1).numpy() * len(drawn)
            common = expected > 5
            counts = np.bincount(drawn[:, t, a].numpy(), minlength=256)
            observed, wanted = np.append(counts[common], counts[~common].sum()), np.append(expected[common], expected[~common].sum())
            assert stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3
    other = TokenDensity(many.logits + torch.linspace(0, 1, 256))
    for t in range(2):
        expect((other.log_prob(drawn) - many.log_prob(drawn))[:, t].exp(), 1.0)
        expect((many.log_prob(drawn) - other.log_prob(drawn))[:, t], many.kl(other)[0, t].item())


def test_tokens_certain_and_impossible():
    logits = torch.full((64, 1, 1, 256), -1e9)
    logits[..., 255] = 0
    certain = TokenDensity(logits)
    assert (certain.sample() == 255).all() and (certain.log_prob(certain.sample()) == 0).all()


# Flow


def walk(level, rows=MANY):
    generator = torch.Generator().manual_seed(0)
    x, velocity = (torch.randn(1, 2, 3, generator=generator).expand(rows, -1, -1) for _ in range(2))
    mean, std = sde_step(x, velocity, torch.full((rows,), 0.6), 0.1, torch.full((rows,), level))
    return FlowDensity(mean[:, None], std[:, None])


def test_steps_of_a_walk_have_the_scored_density():
    one, other = walk(0.7), walk(0.8)
    reached = one.mean + one.std * torch.randn(one.mean.shape, generator=torch.Generator().manual_seed(1))
    score = one.log_prob(reached)
    assert score.shape == (MANY, 2)
    for t in range(2):
        expect((other.log_prob(reached) - score)[:, t].exp(), 1.0)
        expect((score - other.log_prob(reached))[:, t], one.kl(other)[0, t].item())


@pytest.mark.parametrize("level", [0.2, 1.0])
def test_noise_on_the_way_keeps_the_marginals(level):
    """A flow between two normals: every step by the SDE ends in the same distribution as every step by the ODE."""
    steps, n, target = 200, 40_000, (0.5, 0.2)  # mean and spread of the actions
    generator = torch.Generator().manual_seed(0)
    ode = sde = torch.randn(n, 1, 1, generator=generator)
    for k in range(steps):
        time, dt = 1 - k / steps, 1 / steps

        def velocity(x, time=time):
            variance = time**2 + ((1 - time) * target[1]) ** 2
            off = (x - (1 - time) * target[0]) / variance
            return time * off - (target[0] + (1 - time) * target[1] ** 2 * off)  # E[noise - action | x]

        ode = ode - dt * velocity(ode)
        mean, std = sde_step(sde, velocity(sde), torch.full((n,), time), dt, torch.full((n,), level))
        sde = mean + std * torch.randn(n, 1, 1, generator=generator)
    for found in (ode, sde):
        assert found.mean().item() == pytest.approx(target[0], abs=0.01) and found.std().item() == pytest.approx(target[1], rel=0.06)
