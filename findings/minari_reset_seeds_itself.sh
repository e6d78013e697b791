#!/usr/bin/env bash
# minari 0.5.4, gymnasium 1.4.0.
# Guess: wrapped in DataCollector to record it, an environment gives what it gave before; seeded once, it goes on from
# there.
# Seen: DataCollector passes a seed of its own, from the system's entropy, to every reset that has none. So
# reset(seed=0) followed by plain resets no longer repeats; options={"minari_autoseed": False} in each reset restores
# it.
#   Pendulum-v1 second episode, two tries: plain equal True, collected equal False, without autoseed equal True
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir"
"$dir/bin/pip" install -q 'minari[hdf5]==0.5.4' gymnasium==1.4.0 pillow==11.3.0
MINARI_DATASETS_PATH="$dir/data" "$dir/bin/python" - <<'END'
import gymnasium as gym
import minari


def second_start(wrap, **options):
    env = wrap(gym.make("Pendulum-v1"))
    env.reset(seed=0)
    return env.reset(**options)[0].tolist()


plain = [second_start(lambda env: env) for _ in range(2)]
collected = [second_start(minari.DataCollector) for _ in range(2)]
told = [second_start(minari.DataCollector, options={"minari_autoseed": False}) for _ in range(2)]
equal = plain[0] == plain[1], collected[0] == collected[1], told[0] == told[1] == plain[0]
print(f"plain equal {equal[0]}, collected equal {equal[1]}, without autoseed equal {equal[2]}")
assert equal == (True, False, True)
END
