"""What each method maximises or minimises: pure functions of log-probabilities, (B,) in, (B,) out, unreduced.

A *return* R (`..._return`) is maximised, by a policy gradient, E[R ∇ log πθ]: its own derivative has mean zero or is
not wanted. A loss is minimised, by the gradient of its mean. `gae` and `leave_one_out`, in shapes of their own, turn
rewards and returns into the advantages of `reinforce` and `ppo`.
"""

from bonlib.losses.gradients import gae, jeffreys, leave_one_out, ppo, ppo_value, reinforce
from bonlib.losses.offline import bonbon, bonbon_target, dpo, ipo, nll
from bonlib.losses.returns import (
    bond_return,
    jbond_return,
    jbond_reward,
    kl_rl_return,
    vbon_bound_return,
    vbon_loose_bound_return,
    vbon_return,
)

__all__ = [
    "bonbon",
    "bonbon_target",
    "bond_return",
    "dpo",
    "gae",
    "ipo",
    "jbond_return",
    "jbond_reward",
    "jeffreys",
    "kl_rl_return",
    "leave_one_out",
    "nll",
    "ppo",
    "ppo_value",
    "reinforce",
    "vbon_bound_return",
    "vbon_loose_bound_return",
    "vbon_return",
]
