"""What the figures need beyond returns, recorded in a run's folder while it trains.

A probe only reads, and has an environment and random numbers of its own: training is the same with it or without.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch

from omnet_sac import (
    Args,
    ReplayBuffer,
    append_csv,
    episode,
    kept_random_state,
    make_env,
    run_folder,
    stream,
    torch_generator,
)

VISITED_STEPS = 1000  # as far as Figure 6 looks
BIAS_STATES = 1000  # states that enter a measurement of the value bias, at least
BIAS_COLUMNS = "states,mean,std,normalised_mean,normalised_std,return,alpha,"
BIAS_COLUMNS += "normalised_spread,normalised_gap,error_correlation,action_distance"  # of `diversity`
BIAS_TAIL = 0.002  # share of a return that the steps after the end of a truncated episode may still weigh


@dataclass
class Probes:
    """Flags of what is recorded beside a run."""

    trajectory_interval: int = 0
    """environment steps between records of one deterministic episode per actor subnetwork, trajectories.csv, and of
    where the first 1000 steps of training led, visits.csv; for observations that are positions; 0: never"""
    bias_interval: int = 0
    """environment steps between measurements of the critic's value bias, bias.csv; 0: never"""


def trajectories(args: Args, agent) -> list[tuple]:
    """(subnet, t, *observation) along one deterministic episode of each actor subnetwork."""
    rng, rows = stream(args.seed, "probes"), []
    generator, start = torch_generator(rng, args.device), int(rng.integers(2**31))
    with kept_random_state(), closing(make_env(args)) as env:
        for subnet in range(agent.num_actor_subnets):
            act = partial(agent.act, subnet=subnet, generator=generator, deterministic=True)
            steps = list(episode(env, start, args.obs_noise, act))
            path = [obs for obs, *_ in steps] + [steps[-1][3]]
            rows += [(subnet, t, *obs) for t, obs in enumerate(path)]
    return rows


def soft_episode(args: Args, agent, env, generator: torch.Generator, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, a) (t, O + A) and Q^pi (t,) along an episode of the current stochastic policy, as far as they can be known.

    Q^pi(s_t, a_t) = r_t + gamma (Q^pi(s_{t+1}, a_{t+1}) - alpha log pi(a_{t+1} | s_{t+1})), summed up from the end with
    the learned alpha. Of an episode that was truncated, states too close to its end are left out.
    """
    mask, alpha = agent.actor.sample(1, 1, generator)[0], agent.log_alpha.exp().item()
    pairs, rewards, log_pis = [], [], []

    def act(obs):
        x = torch.as_tensor(obs, dtype=torch.float32, device=args.device)
        noise = torch.randn(agent.action_dim, generator=generator, device=args.device)
        action, log_pi = agent.policy(agent.actor.theta, mask, x, noise)
        pairs.append(torch.cat([x, action]))
        log_pis.append(log_pi.item())
        return action.cpu().numpy()

    for _, _, reward, _, terminated, _ in episode(env, seed, args.obs_noise, act):  # noqa: B007
        rewards.append(reward)
    q, next_value = torch.zeros(len(rewards)), 0.0
    for t in reversed(range(len(rewards))):
        q[t] = rewards[t] + args.gamma * next_value
        next_value = q[t].item() - alpha * log_pis[t]
    tail = math.ceil(math.log(BIAS_TAIL) / math.log(args.gamma)) if 0 < args.gamma < 1 else 1
    known = len(rewards) if terminated else max(0, len(rewards) - tail)
    return torch.stack(pairs)[:known], q[:known]


def diversity(q: torch.Tensor, q_pi: torch.Tensor, actions: torch.Tensor) -> dict[str, torch.Tensor]:
    """How far apart k critics (or subnetworks) and m actors are, from Q (k, S), Q^pi (S,) and actions (m, S, A).

    Over |mean Q^pi|: the standard deviation of Q over the critics, and by how much the minimum over two of them
    is below their mean. Correlation of the errors Q - Q^pi of two critics; distance between two actors' actions. Means
    over states and pairs; what needs two and has one is left out.
    """
    columns, scale = {}, q_pi.mean().abs()
    if len(q) > 1:
        one, two = torch.combinations(torch.arange(len(q))).T
        columns["normalised_spread"] = q.std(0).mean() / scale
        columns["normalised_gap"] = (q[one] - q[two]).abs().mean() / 2 / scale  # mean - min = |difference| / 2
        columns["error_correlation"] = torch.corrcoef(q - q_pi)[one, two].mean()
    if len(actions) > 1:
        one, two = torch.combinations(torch.arange(len(actions))).T
        columns["action_distance"] = (actions[one] - actions[two]).norm(dim=-1).mean()
    return columns


def value_bias(args: Args, agent, step: int) -> dict[str, float]:
    """Section 4.2, Figure 4: E[Q(s, a) - Q^pi(s, a)] under the current policy; Q is the mean over the critics.

    Returns the columns of bias.csv, those of `diversity` included; only `states` if no episode was long enough.
    """
    rng = stream(args.seed, "probes", step)
    generator = torch_generator(rng, args.device)
    theta = agent.critic.theta.clone()  # not theta itself, of which SAC's agent would give the actor's minimum
    states, values, returns = [], [], [torch.zeros(0)]
    with kept_random_state(), closing(make_env(args)) as env:
        while (known := sum(map(len, returns))) < BIAS_STATES and (known or len(returns) <= 5):  # 5 in vain: give up
            pairs, q_pi = soft_episode(args, agent, env, generator, int(rng.integers(2**31)))
            for chunk in pairs.split(args.batch_size):
                x = torch.zeros(args.batch_size, pairs.shape[1], device=args.device)  # dropout's masks are a batch
                x[: len(chunk)] = chunk
                masks = agent.critic.sample(1, args.num_subnets, generator)[0]
                values.append(agent.q_value(theta, masks, x)[:, : len(chunk)].cpu())
            states.append(pairs[:, : agent.obs_dim])
            returns.append(q_pi)
    if not values:
        return {"states": 0}
    q, q_pi = torch.cat(values, 1), torch.cat(returns)
    bias = q.mean(0) - q_pi
    every = agent.actor.sample(1, args.num_subnets, generator)[0]
    actions = agent.actor(agent.actor.theta, every, torch.cat(states)).chunk(2, -1)[0].tanh().cpu()
    row = {"states": len(bias), "mean": bias.mean(), "std": bias.std(), "return": q_pi.mean()}
    row |= {"normalised_mean": bias.mean() / q_pi.mean().abs(), "normalised_std": bias.std() / q_pi.mean().abs()}
    row |= {"alpha": agent.log_alpha.exp()} | diversity(q, q_pi, actions)
    return {name: float(value) for name, value in row.items()}


def probed(make_agent: Callable) -> Callable:
    """`make_agent` for omnet_sac.train, whose agents also record what `Probes` asks for after an update."""

    def make_probed_agent(args, obs_dim: int, action_dim: int):
        agent = make_agent(args, obs_dim, action_dim)
        update, coordinates = agent.update, ",".join(f"obs_{i}" for i in range(obs_dim))

        def record(name: str, columns: str, step: int, rows: list[tuple]) -> None:
            rows = [(step, *(f"{x:.8g}" if isinstance(x, float) else x for x in row)) for row in rows]
            append_csv((args.resume or run_folder(args)) / name, *rows, columns=f"step,{columns}")

        def update_and_record(buffer: ReplayBuffer) -> dict[str, float]:
            metrics, step = update(buffer), buffer.added
            if args.trajectory_interval and step <= args.learning_starts + VISITED_STEPS:
                next_obs = buffer.rows[(step - 1) % len(buffer.rows), -2 - obs_dim : -2]
                record("visits.csv", coordinates, step, [tuple(next_obs.tolist())])
            if args.trajectory_interval and step % args.trajectory_interval == 0:
                rows = [(*row[:2], *map(float, row[2:])) for row in trajectories(args, agent)]
                record("trajectories.csv", f"subnet,t,{coordinates}", step, rows)
            if args.bias_interval and step % args.bias_interval == 0:
                bias = value_bias(args, agent, step)
                row = tuple(bias.get(column, "") for column in BIAS_COLUMNS.split(","))
                record("bias.csv", BIAS_COLUMNS, step, [row])
            return metrics

        agent.update = update_and_record
        return agent

    return make_probed_agent
