#!/usr/bin/env bash
# torchrl 0.14.1.
# Guess: the critics of SACLoss have SAC's loss, the squared error.
# Seen: they have the smooth L1 loss unless loss_function="l2" is passed: beyond 1, an error ten times as large pulls
# no harder.
#   sum over two critics that say 0 where the target is 10: default 19.0, l2 200.0
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q torchrl==0.14.1 torch==2.13.0 numpy==2.4.6
RL_WARNINGS=False "$dir/bin/python" - <<'END'
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss

net = torch.nn.Sequential(torch.nn.Linear(1, 2), NormalParamExtractor())
module = TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"])
actor = ProbabilisticActor(module, in_keys=["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True)
critic = ValueOperator(MLP(in_features=2, out_features=1, num_cells=[]), in_keys=["observation", "action"])
zero, end = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
after = {"observation": zero, "reward": zero + 10, "done": end, "terminated": end}
batch = TensorDict({"observation": zero, "action": zero, "next": after}, [1])
seen = {}
for name, options in {"default": {}, "l2": {"loss_function": "l2"}}.items():
    sac = SACLoss(actor, critic, target_entropy=-1.0, **options)
    for weights in sac.qvalue_network_params.values(include_nested=True, leaves_only=True):
        weights.data.zero_()
    seen[name] = sac(batch)["loss_qvalue"].item()
    print(name, seen[name])
assert seen == {"default": 19, "l2": 200}
END
