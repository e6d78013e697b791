"""Every method that the paper compares OMNet-SAC with (Section 4.1): one ensemble of critics with a few knobs.

    python -m paper.baselines redq --env-id Ant-v4

Loop, buffer, policy, optimizers, evaluation and checkpoints are those of omnet_sac.py, so that a difference between two
curves is a difference between two methods. `omnet-sac` is there too, for what a probe records beside the run.
"""

import copy
import math
import sys
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn as nn
import tyro
from tyro.conf import Suppress

import omnet_sac
from omnet_sac import Args, OMNet, OMNetSAC, ReplayBuffer, UsageError, mlp, stream, whole_numbers
from paper.probes import Probes, probed

# Table 1 of the paper, for DroQ and Sin-DroQ; elsewhere the 0.01 of DroQ's authors
DROPOUT = {
    2: {"Hopper-v4": 0.001, "Walker2d-v4": 0.003, "Ant-v4": 0.01, "Humanoid-v4": 0.03},
    1: {"Hopper-v4": 0.001, "Walker2d-v4": 0.01, "Ant-v4": 0.1, "Humanoid-v4": 0.01},
}


@dataclass
class OMNetArgs(Probes, Args):
    """OMNet-SAC: one critic with N masked subnetworks. What the paper leaves open about the masks can be changed."""

    dense_in: Literal["both", "critic", "actor"] = "both"
    """networks whose layers are dense where mask-input and mask-output say so"""
    balanced_masks: bool = False
    """every parameter is in N (1 - S) of the N masks, rounded up or down at random: their overlap is controlled"""


@dataclass(kw_only=True)
class Baseline(Probes, Args):
    """An actor and an ensemble of critics; the target is the minimum over two of them. The defaults are the paper's."""

    method: Suppress[str]
    num_critics: int = 2
    """critics in the ensemble, all of them updated in every gradient step"""
    layer_norm: bool = False
    """layer normalisation in the critics"""
    dropout: float | None = 0.0
    """probability of dropout in the critics, active in target and updates; None: the paper's Table 1"""
    reset_interval: int = 0
    """environment steps after which networks, optimizers and alpha start afresh (SR-SAC); 0: never"""
    actor_minimum: bool = False
    """the actor climbs the minimum over the critics instead of their mean"""
    num_subnets: Suppress[int] = 1
    sparsity: Suppress[float] = 0.0
    dynamic_masks: Suppress[bool] = False
    actor_subnets: Suppress[bool] = False
    mask_input: Suppress[bool] = True
    mask_output: Suppress[bool] = True


ONCE, RESET = {"replay_ratio": 1, "policy_delay": 1}, {"reset_interval": 100_000}
METHODS = {
    "omnet-sac": ("one critic, N masked subnetworks", OMNetArgs()),
    "sac": ("Haarnoja et al., 2018: replay ratio 1", Baseline(method="sac", actor_minimum=True, **ONCE)),
    "sac-20": ("SAC at replay ratio 20", Baseline(method="sac_20")),
    "redq": ("Chen et al., 2021: ten critics", Baseline(method="redq", num_critics=10)),
    "droq": ("Hiraoka et al., 2021: dropout", Baseline(method="droq", layer_norm=True, dropout=None)),
    "sr-sac": ("D'Oro et al., 2022: resets", Baseline(method="sr_sac", **RESET)),
    "sin-sac": ("SAC-20 with one critic", Baseline(method="sin_sac", num_critics=1)),
    "sin-droq": ("DroQ with one", Baseline(method="sin_droq", num_critics=1, layer_norm=True, dropout=None)),
    "sr-sin-sac": ("SR-SAC with one", Baseline(method="sr_sin_sac", num_critics=1, **RESET)),
}


def table_dropout(num_critics: int, env_id: str) -> float:
    """The probability of dropout that `--dropout None` stands for."""
    return DROPOUT[1 if num_critics == 1 else 2].get(env_id, 0.01)


def balanced(density: torch.Tensor, num_subnets: int, generator: torch.Generator) -> torch.Tensor:
    """Masks (N, n) with parameter j in N * density[j] of them, rounded at random to a whole number of this mean."""
    rank = torch.rand(num_subnets, len(density), generator=generator, device=density.device).argsort(0).argsort(0)
    rounding = torch.rand(len(density), generator=generator, device=density.device)
    return (rank < (num_subnets * density + rounding).floor()).to(torch.uint8)


class OMNetVariant(OMNetSAC):
    """OMNet-SAC with the masks that OMNetArgs asks for; by default its own."""

    def make_networks(self) -> tuple[OMNet, OMNet]:
        args, (critic, actor) = self.args, super().make_networks()
        if args.dense_in != "both":  # an agent of the same seed has the same weights and random numbers
            literal = OMNetSAC(replace(args, mask_input=True, mask_output=True), self.obs_dim, self.action_dim)
            critic, actor = (critic, literal.actor) if args.dense_in == "critic" else (literal.critic, actor)
        if args.balanced_masks:
            for omnet in (critic, actor):
                omnet.masks.copy_(balanced(omnet.density, len(omnet.masks), self.mask_generator))
        return critic, actor


class Dropout(nn.Module):
    """`net` with dropout after each hidden linear layer. What is kept is an input, as compiled steps draw nothing."""

    def __init__(self, net: nn.Sequential, p: float):
        super().__init__()
        self.net, self.p = net, p

    def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """keep (2, B, hidden_dim): 1 where the output of a hidden layer is kept, else 0."""
        hidden = iter(keep)
        for layer in self.net[:-1]:
            x = layer(x)
            if isinstance(layer, nn.Linear):
                x = x * (next(hidden) * (1 / (1 - self.p)))
        return self.net[-1](x)


class Ensemble(OMNet):
    """Separate critics behind the interface of OMNet: theta (E * n,) holds the parameters of E networks."""

    def __init__(self, nets: list[nn.Module], hidden_shape: tuple[int, ...]):
        super().__init__(nets[0], num_subnets=len(nets), sparsity=0.0)
        self.theta = nn.Parameter(torch.cat([OMNet(net, 1, 0.0).theta for net in nets]), False)
        self.masks = torch.arange(len(nets), device=self.theta.device)  # in place of masks: which critic
        self.num_critics, self.hidden_shape = len(nets), hidden_shape
        self.dropout = nets[0].p if isinstance(nets[0], Dropout) else 0.0

    def sample(self, steps: int, k: int, generator=None) -> torch.Tensor:
        """In place of masks: where OMNet takes one subnetwork (k = 1), all critics; else the indices (steps, k) of k
        different ones. With dropout, the units kept (steps, k, 2, B, hidden_dim) in k passes, which critics share."""
        k = self.num_critics if k == 1 else k
        if not self.dropout:
            return super().sample(steps, k, generator)
        shape = steps, k, *self.hidden_shape
        bits = torch.empty(math.ceil(math.prod(shape) / 4), dtype=torch.int64, device=self.theta.device)
        bits = bits.random_(-(2**63), None, generator=generator).view(torch.int16)[: math.prod(shape)]
        return (bits >= round(self.dropout * 2**16) - 2**15).view(torch.uint8).view(shape)  # 6x faster than bernoulli

    def forward(self, theta: torch.Tensor, chosen: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The outputs (k, B, 1) of the critics chosen by `sample`."""
        critics = theta.view(self.num_critics, -1)
        if self.dropout:
            return torch.stack([self.subnet(critics[j % self.num_critics], x, keep) for j, keep in enumerate(chosen)])
        critics = critics if len(chosen) == self.num_critics else critics[chosen]
        return torch.vmap(self.subnet, (0, None))(critics, x)


class EnsembleSAC(OMNetSAC):
    """SAC, REDQ, DroQ and their variants: as OMNet-SAC, with an ensemble of critics and a plain actor."""

    def make_networks(self) -> tuple[OMNet, OMNet]:
        args = self.args
        dropout = table_dropout(args.num_critics, args.env_id) if args.dropout is None else args.dropout

        def make_critic() -> nn.Module:
            net = mlp(self.obs_dim + self.action_dim, 1, args.hidden_dim).to(args.device)
            net = net if args.layer_norm else without_layer_norm(net)
            return Dropout(net, dropout) if dropout else net

        actor = without_layer_norm(mlp(self.obs_dim, 2 * self.action_dim, args.hidden_dim).to(args.device))
        critics = [make_critic() for _ in range(args.num_critics)]
        return Ensemble(critics, (2, args.batch_size, args.hidden_dim)), OMNet(actor, 1, 0.0)

    def q_value(self, theta, masks, obs_action) -> torch.Tensor:
        q = super().q_value(theta, masks, obs_action)
        is_actor_loss = theta is self.critic.theta  # the critic's loss has a theta of its own, to differentiate
        return q.amin(0, keepdim=True) if self.args.actor_minimum and is_actor_loss else q

    def update(self, buffer: ReplayBuffer) -> dict[str, float]:
        done = buffer.added - 1  # not with the step itself, after which the agent may be evaluated
        if self.args.reset_interval and done and done % self.args.reset_interval == 0:
            self.reset(done // self.args.reset_interval)
        return super().update(buffer)

    def reset(self, k: int) -> None:
        """Fresh networks, target, optimizers and alpha, for the k-th time; random state and step count go on."""
        seed = int(stream(self.args.seed, "weights", k).integers(2**63))
        fresh = type(self)(replace(self.args, seed=seed), self.obs_dim, self.action_dim)
        self.load_state_dict(fresh.state_dict() | {"_extra_state": copy.deepcopy(self.get_extra_state())})


def without_layer_norm(net: nn.Sequential) -> nn.Sequential:
    layers = net.named_children()
    return nn.Sequential(OrderedDict((name, layer) for name, layer in layers if not isinstance(layer, nn.LayerNorm)))


def make_agent(args: OMNetArgs | Baseline, obs_dim: int, action_dim: int) -> OMNetSAC:
    """The agent that the class of `args` stands for, with its probes. Raises UsageError for knobs that cannot work."""
    check_args(args)
    agent_class = EnsembleSAC if isinstance(args, Baseline) else OMNetVariant
    return probed(agent_class)(args, obs_dim, action_dim)


def check_args(args: OMNetArgs | Baseline) -> None:
    """Raises UsageError for knobs that no run can work with."""
    if isinstance(args, OMNetArgs):
        return
    if args.num_critics < 1:
        raise UsageError("--num-critics must be at least 1 (with 1, the TD target is that one: no minimum)")
    if args.dropout is not None and not 0 <= args.dropout < 1:
        raise UsageError("--dropout must be at least 0 and below 1")
    if args.num_critics > 2 and args.dropout != 0:
        raise UsageError("--dropout works with 1 or 2 critics, all of which enter the target")
    if args.reset_interval < 0:
        raise UsageError("--reset-interval must not be negative; 0 means never")


def method_args(method: str, words: list[str], **given) -> OMNetArgs | Baseline:
    """The flags of a method from its command line, by default those `given`, then its own; an unknown one ends the
    program."""
    default = replace(METHODS[method][1], **given)
    words = whole_numbers(default, words)
    return tyro.cli(type(default), default=default, args=words, prog=f"python -m paper.baselines {method}")


def main(words: list[str]) -> None:
    """As omnet_sac.main, for the method that the command line begins with."""
    method, *words = words or ["--help"]
    if method not in METHODS:
        told = "\n".join(f"  {name:12} {text}" for name, (text, _) in METHODS.items())
        print(f"python -m paper.baselines METHOD [FLAGS]; METHOD --help has the flags. Methods:\n{told}")
        sys.exit(0 if method in ("-h", "--help") else 2)
    prog, description = f"python -m paper.baselines {method}", METHODS[method][0]
    omnet_sac.main(METHODS[method][1], make_agent, words, prog=prog, description=description)


if __name__ == "__main__":
    main(sys.argv[1:])
