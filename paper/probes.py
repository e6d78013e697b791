"""What the figures need beyond returns, recorded in a run's folder while it trains.

A probe only reads, and has an environment and random numbers of its own: training is the same with it or without.
"""

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from omnet_sac import Args, ReplayBuffer, make_env, open_csv, run_folder

VISITED_STEPS = 1000  # as far as Figure 6 looks
BIAS_STATES = 1000  # states that enter a measurement of the value bias, at least
BIAS_COLUMNS = "states,mean,std,normalised_mean,normalised_std,return,alpha"
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
    generator, rows = torch.Generator(args.device).manual_seed(args.seed), []
    with closing(make_env(args)) as env:
        for subnet in range(agent.num_actor_subnets):
            (obs, _), t, done = env.reset(seed=args.seed), 0, False
            rows.append((subnet, t, *obs))
            while not done:
                obs, _, terminated, truncated, _ = env.step(agent.act(obs, subnet, generator, deterministic=True))
                t, done = t + 1, terminated or truncated
                rows.append((subnet, t, *obs))
    return rows


def value_bias(args: Args, agent, step: int) -> dict[str, float]:
    """Section 4.2, Figure 4: E[Q(s, a) - Q^pi(s, a)] over states and actions of the current stochastic policy.

    Q is the mean over the critic's (sub)networks. Q^pi is the discounted return that followed, with SAC's entropy bonus
    at the learned alpha. Of episodes that were truncated, only states that are far enough from the end count.
    """
    rng = np.random.default_rng([args.seed, step])
    generator = torch.Generator(args.device).manual_seed(int(rng.integers(2**31)))
    alpha, theta = agent.log_alpha.exp().item(), agent.critic.theta.detach().clone()
    tail = math.ceil(math.log(BIAS_TAIL) / math.log(args.gamma)) if 0 < args.gamma < 1 else 1
    biases, returns, num_states, num_steps = [], [], 0, 0
    with closing(make_env(args)) as env:
        while num_states < BIAS_STATES and num_steps < 5 * BIAS_STATES:
            i = agent.actor.select(1, 1, generator)[0]
            (obs, _), done, pairs, rewards, log_pis = env.reset(seed=int(rng.integers(2**31))), False, [], [], []
            while not done:
                x = torch.as_tensor(obs, dtype=torch.float32, device=args.device)
                noise = torch.randn(agent.action_dim, generator=generator, device=args.device)
                action, log_pi = agent.policy(agent.actor.theta, i, x, noise)
                obs, reward, terminated, truncated, _ = env.step(action.cpu().numpy())
                done = terminated or truncated
                pairs.append(torch.cat([x, action]))
                rewards.append(float(reward))
                log_pis.append(log_pi.item())
            soft_returns, next_value = [], 0.0
            for reward, log_pi in zip(reversed(rewards), reversed(log_pis)):
                soft_returns.insert(0, reward + args.gamma * next_value)
                next_value = soft_returns[0] - alpha * log_pi
            usable = len(rewards) if terminated else max(0, len(rewards) - tail)
            num_states, num_steps = num_states + usable, num_steps + len(rewards)
            for start in range(0, usable, args.batch_size):
                x = torch.zeros(args.batch_size, len(pairs[0]), device=args.device)  # dropout's masks are a batch
                chunk = slice(start, min(start + args.batch_size, usable))
                x[: chunk.stop - start] = torch.stack(pairs[chunk])
                q = agent.q_value(theta, agent.critic.select(1, args.num_subnets, generator)[0], x).mean(0)
                expected = torch.tensor(soft_returns[chunk])
                biases.append(q[: len(expected)].cpu() - expected)
                returns.append(expected)
    if not biases:
        return {"states": 0}
    bias, scale = torch.cat(biases), torch.cat(returns).mean().abs()
    row = {"states": len(bias), "mean": bias.mean(), "std": bias.std(), "normalised_mean": bias.mean() / scale}
    row |= {"normalised_std": bias.std() / scale, "return": torch.cat(returns).mean(), "alpha": alpha}
    return {name: float(value) for name, value in row.items()}


def probed(make_agent: Callable) -> Callable:
    """`make_agent` for omnet_sac.train, whose agents also record what `Probes` asks for after an update."""

    def make_probed_agent(args, obs_dim: int, action_dim: int):
        agent = make_agent(args, obs_dim, action_dim)
        update, files = agent.update, {}

        def record(name: str, columns: str, step: int, rows: list[tuple]) -> None:
            """Appends rows to a CSV file; its first use cuts it back to what a resumed run has done."""
            if name not in files:
                files[name] = open_csv((args.resume or run_folder(args)) / name, columns, step - 1)
            for row in rows:
                print(step, *(f"{x:.8g}" if isinstance(x, float) else x for x in row), sep=",", file=files[name])
            files[name].flush()

        def update_and_record(buffer: ReplayBuffer) -> dict[str, torch.Tensor]:
            metrics, step = update(buffer), buffer.added
            if args.trajectory_interval:
                coordinates = ",".join(f"obs_{i}" for i in range(obs_dim))
                if step <= args.learning_starts + VISITED_STEPS:
                    next_obs = buffer.rows[(step - 1) % len(buffer.rows), -1 - obs_dim : -1]
                    record("visits.csv", f"step,{coordinates}", step, [tuple(next_obs.tolist())])
                if step % args.trajectory_interval == 0:
                    rows = [(*row[:2], *map(float, row[2:])) for row in trajectories(args, agent)]
                    record("trajectories.csv", f"step,subnet,t,{coordinates}", step, rows)
            if args.bias_interval and step % args.bias_interval == 0:
                bias = value_bias(args, agent, step)
                record(
                    "bias.csv", f"step,{BIAS_COLUMNS}", step, [tuple(bias.get(c, "") for c in BIAS_COLUMNS.split(","))]
                )
            return metrics

        agent.update = update_and_record
        return agent

    return make_probed_agent
