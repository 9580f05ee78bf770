"""InfAlign-CTRL: KL-RL for a policy that will be best-of-n'd, on a transformed calibrated reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bonlib.checks import check_shapes, number, settle
from bonlib.methods.kl_rl import KlRl, kl_rl_return
from bonlib.methods.registry import register
from bonlib.training.on_policy import Judged
from bonlib.training.reward_cdf import LogCdf


def ctrl_reward(calibrated: Tensor, *, exponent: float) -> Tensor:
    """Return (e^(tc) − 1)/(e^t − 1): e^(tc), scaled to go from 0 for the worst response to 1 for the best, shape (B,).

    The shift changes no optimum, and with the scale β is in units of win rate for every t: t = 0 is c itself. A
    positive t is for best-of-n, a negative one, where it is −e^(tc) scaled, for worst-of-n.

    Args:
        calibrated: c = (F + F≤)/2, shape (B,), from 0 to 1.
        exponent: t, finite.

    Raises:
        ValueError: if the shape is not (B,), a c is out of range or `exponent` is not finite.

    Source: Balashankar et al. 2024 (InfAlign-CTRL).
    """
    check_shapes(calibrated=calibrated)
    if not bool(((calibrated >= 0) & (calibrated <= 1)).all()):
        worst = calibrated.detach()[~((calibrated >= 0) & (calibrated <= 1))][0].item()
        raise ValueError(f"calibrated holds {worst:.4g}; it must be a chance, from 0 to 1")
    exponent = number("exponent", exponent)
    if exponent == 0:
        return calibrated
    away = -abs(exponent)  # no power of e above 1 is taken
    if exponent < 0:
        return torch.expm1(away * calibrated) / torch.expm1(calibrated.new_tensor(away))
    return 1 - torch.expm1(away * (1 - calibrated)) / torch.expm1(calibrated.new_tensor(away))


@dataclass(frozen=True)
class InfAlignCtrl(KlRl):
    """InfAlign-CTRL: e^(tc), scaled to [0, 1], minus β times the KL, c the calibrated reward.

    Attributes:
        beta: KL coefficient β.
        exponent: t; positive for best-of-n, negative for worst-of-n.
    """

    exponent: float = 10.0
    needs_cdf: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, exponent=number("exponent", self.exponent))

    def returns(self, judged: Judged, cdf: LogCdf | None) -> Tensor:
        """Return the scaled e^(tc) − β (log πθ − log π)."""
        rewards = ctrl_reward(judged.calibrated(cdf), exponent=self.exponent)
        return kl_rl_return(judged.log_probs, judged.ref_log_probs, rewards, beta=self.beta)


register(
    name="infalign-ctrl",
    make=InfAlignCtrl,
    setting="beta",
    algorithm="rloo",
    label="InfAlign-CTRL",
    colour="#693cff",
    marker="H",
    grid=(0.05, 0.1, 0.2, 0.4, 0.8),
    samples="4 responses a prompt from the policy, and M stored draws a prompt for ĉ",
    objective="`kl_rl_return` of `ctrl_reward`: (e^{tĉ} − 1)/(e^t − 1) − β(log πθ − log π)",
    source="Balashankar et al. 2024",
    place=12,
)
