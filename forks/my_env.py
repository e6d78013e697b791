"""An environment with arguments and a wrapper of one's own: `--env-id forks.my_env:LazyHopper-v0`, no patch needed."""

import gymnasium as gym


def make_env(**kwargs) -> gym.Env:
    """A Hopper that is paid less for speed, and whose rewards are a tenth."""
    env = gym.make("Hopper-v4", forward_reward_weight=0.5, **kwargs)
    return gym.wrappers.TransformReward(env, lambda reward: 0.1 * reward)


gym.register("LazyHopper-v0", make_env)
