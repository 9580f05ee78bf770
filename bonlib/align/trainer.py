"""The one loop that trains every method: draw or take examples, compute a loss, step; with checkpoints that resume.

A step's work is cut into shards. Each has a seed of its own, drawn from the run's seed and the step, and nothing else
is random: a resumed run, and one on several processes, sees the same responses as an undisturbed one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from bonlib import losses
from bonlib.align.methods import Bonbon, Judged, OffPolicy, OnPolicy
from bonlib.align.run_folder import Progress, RunFolder
from bonlib.align.settings import Ppo, TrainingData, TrainSettings
from bonlib.lm.kernels import cpu_kernels, keep_freed_memory
from bonlib.lm.models import LoadedModel, load_language_model
from bonlib.lm.reading import TokenBatch, response_logits, token_batch
from bonlib.lm.rewards import checked_score
from bonlib.lm.samplers import TransformersSampler, encode_prompts

Measure = Callable[[LoadedModel], Mapping[str, float]]
PROGRESS = ("step", "seconds", "responses", "curve", "recent")  # attributes of a run that a checkpoint keeps


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained policy and how it came about.

    Attributes:
        policy: the model; `folder / "policy"` holds it for `transformers`.
        curve: one row for each measured step: means since the last one (loss, gradient norm, learning rate; reward, KL,
            entropy and return of the responses, where the method draws any), what `measure` returned, and step, seconds
            and responses so far.
        responses: drawn from the policy while training, or taken from the reference's draws, in all.
        seconds: spent, measurements left out.
        folder: of the run.
        main_process: whether this process is the one that writes and reports.
    """

    policy: LoadedModel
    curve: list[dict[str, float]]
    responses: int
    seconds: float
    folder: Path
    main_process: bool = True


class DivergedError(RuntimeError):
    """Training came to numbers that are not finite, or left the reference beyond any use; the message says where."""


class Policy(torch.nn.Module):
    """The model that learns, as the loop calls it: log-probabilities of responses, token by token.

    Args:
        model: a causal language model.
        with_values: whether it has a value head, which says what return to expect before each token; 0 at first.
    """

    def __init__(self, model: Any, with_values: bool = False) -> None:
        super().__init__()
        self.model = model
        self.value_head = None
        if with_values:
            self.value_head = torch.nn.Linear(model.config.hidden_size, 1).to(next(model.parameters()).device)
            torch.nn.init.zeros_(self.value_head.weight)
            torch.nn.init.zeros_(self.value_head.bias)

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """Return log-probabilities of the response tokens and values before them, each (B, T), 0 in padding."""
        output = response_logits(self.model, batch, output_hidden_states=self.value_head is not None)
        nll = torch.nn.functional.cross_entropy(
            output.logits.flatten(0, 1), batch.responses.flatten(), reduction="none"
        )
        log_probs = -nll.view_as(batch.responses) * batch.response_mask
        if self.value_head is None:
            return log_probs, None
        states = output.hidden_states[-1][:, -batch.responses.shape[1] - 1 : -1]
        with torch.autocast(states.device.type, enabled=False):  # steps of bfloat16 are as wide as the value's clip
            values = self.value_head(states.float())[..., 0]
        return log_probs, values * batch.response_mask


@dataclass(frozen=True, eq=False)
class Rollout:
    """One shard of responses with all that its loss needs.

    Attributes:
        batch: what the policy reads again, with gradients.
        prompts: B of them.
        returns: (B,) what each response is worth, on the CPU; None off policy.
        reference: (B, T) log-probabilities of tokens under the reference; off policy (E, roles), of the whole responses
            of each example.
        old: (B, T) under the policy that drew them, and values; None without PPO.
        figures: means over the shard, for the curve and the progress bar.
    """

    batch: TokenBatch
    prompts: Sequence[str]
    reference: Tensor
    returns: Tensor | None = None
    old: tuple[Tensor, Tensor] | None = None
    figures: Mapping[str, float] | None = None


def train(
    reference: LoadedModel,
    method: OnPolicy | OffPolicy,
    data: TrainingData,
    settings: TrainSettings,
    folder: Path,
    *,
    measure: Measure | None = None,
    show: bool = True,
) -> Trained:
    """Train a policy that starts as the reference, and save it.

    Args:
        reference: where the policy starts; it is not changed.
        method: one of `bonlib.align.methods`.
        data: prompts, rewards and draws.
        settings: how long and how fast.
        folder: of this run alone. Checkpoints go there; an interrupted run goes on from the newest and comes to the
            same numbers; a finished one is loaded.
        measure: returns figures of the policy so far, for the curve; called every `settings.measure_every` steps and
            at the end, on the main process.
        show: whether to show a progress bar.

    Raises:
        ValueError: if method, data and settings do not fit, or the folder holds a run with others.
        DivergedError: if a loss or gradient is not finite, or the policy runs away. The last checkpoint is kept.
    """
    return TrainingRun(reference, method, data, settings, folder, measure, show).go()


class TrainingRun:
    """One training run."""

    def __init__(
        self,
        reference: LoadedModel,
        method: OnPolicy | OffPolicy,
        data: TrainingData,
        settings: TrainSettings,
        folder: Path,
        measure: Measure | None,
        show: bool,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        keep_freed_memory()
        # Tied weights are stored once, as they should be, and each checkpoint would say so.
        logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)
        set_seed(settings.seed)  # of an adapter's first weights; all other draws have generators of their own
        self.reference, self.method, self.data, self.settings = reference, method, data, settings
        self.folder, self.measure, self.show = folder, measure, show
        try:
            self.accelerator = Accelerator(cpu=reference.device.type == "cpu", mixed_precision=settings.precision)
        except ValueError as error:
            raise ValueError(
                f"precision is {settings.precision!r}, but this process has trained with another: start a new one"
            ) from error
        if getattr(method, "needs_cdf", False) and data.cdf is None:
            raise ValueError(
                "cdf is None; vBoN needs the reward's distribution: give a SampledCdf of reference samples"
            )
        self.files = RunFolder(folder, self.accelerator)
        if settings.shards % self.accelerator.num_processes:
            raise ValueError(
                f"shards is {settings.shards} for {self.accelerator.num_processes} processes; take a multiple of that"
            )
        self.examples = None if hasattr(method, "returns") else self._examples()
        self.prompt_ids = dict(
            zip(
                data.prompts,
                encode_prompts(reference.tokenizer, reference.context, data.prompts, data.sampling.max_new_tokens),
                strict=True,
            )
        )
        policy = Policy(_trainable(reference.model, settings.lora_rank), with_values=settings.ppo is not None)
        learned = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        # The returns shrink as the policy improves, so the optimiser must forget their early size soon.
        optimiser = torch.optim.AdamW(learned, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.policy, self.optimiser = self.accelerator.prepare(policy, optimiser)
        self.policy.eval()  # dropout would make the policy that learns another than the one that draws
        self.learned = learned
        inner = self.accelerator.unwrap_model(self.policy).model
        self.loaded = replace(reference, model=inner, name=f"policy from {reference.name}")
        self.sampler = TransformersSampler(self.loaded, batch_size=settings.prompts * max(settings.group, 1))
        self.frozen = Policy(reference.model)
        self.curve: list[dict[str, float]] = []
        self.recent: list[dict[str, float]] = []  # steps that are not in the curve yet
        self.step, self.seconds, self.responses = 0, 0.0, 0

    # -- the loop --------------------------------------------------------------------------------------------------

    def go(self) -> Trained:
        """Train from the newest checkpoint to the last step."""
        self.files.claim(self._about())
        if self.files.finished:
            self._go_on_from(self.files.final_progress())
            return self._trained(
                load_language_model(self.folder / "policy", device=self.reference.device.type, dtype="float32")
            )
        self._go_on_from(self.files.resume())
        bar = tqdm(
            total=self.settings.steps,
            initial=self.step,
            desc=self.folder.name,
            unit="step",
            disable=not (self.show and self.accelerator.is_main_process),
            mininterval=5,  # every refresh stays in a notebook's output for good
            leave=False,
        )
        with bar:
            while self.step < self.settings.steps:
                begun = time.perf_counter()
                figures = self.train_step()
                self.recent.append(figures)
                self.step += 1
                self.seconds += time.perf_counter() - begun
                last = self.step == self.settings.steps
                if last or self.step % self.settings.measure_every == 0:
                    self.curve.append(self._point())
                if not last and self.step % self.settings.checkpoint_every == 0:
                    self.files.save(self.step, self._progress())
                shown = [name for name in ("reward", "kl", "entropy", "loss") if name in figures]
                bar.set_postfix({name: f"{figures[name]:.3g}" for name in shown}, refresh=False)
                bar.update()
        self.files.finish(self.loaded, self._progress())
        return self._trained(self.loaded)

    def _trained(self, policy: LoadedModel) -> Trained:
        main = self.accelerator.is_main_process
        return Trained(policy, self.curve, self.responses, self.seconds, self.folder, main)

    def _point(self) -> dict[str, float]:
        """One row of the curve: means over the steps since the last one, and what is measured now."""
        row: dict[str, float] = {"step": self.step, "seconds": self.seconds, "responses": self.responses}
        row |= {name: float(np.mean([figures[name] for figures in self.recent])) for name in self.recent[0]}
        self.recent = []
        return row | dict(self.measure(self.loaded) if self.measure and self.accelerator.is_main_process else {})

    def train_step(self) -> dict[str, float]:
        """One batch of responses or examples, and the gradient steps it is used for."""
        settings, accelerator = self.settings, self.accelerator
        rate = settings.learning_rate_at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        mine = range(accelerator.process_index, settings.shards, accelerator.num_processes)
        shards = [self._rollout(shard) if self.examples is None else self._taken(shard) for shard in mine]
        for shard in shards:
            if shard.returns is not None:
                self._expect_finite("a return", shard.returns, shards)
        advantages = self._advantages(shards)
        for _ in range(settings.ppo.epochs if settings.ppo else 1):
            total = 0.0
            for place, (shard, advantage) in enumerate(zip(shards, advantages, strict=True)):
                syncs = place + 1 == len(shards)
                with nullcontext() if syncs else accelerator.no_sync(self.policy):
                    loss = self._loss(shard, advantage) / settings.shards
                    # Processes average their gradients; each shard counts as one part of the whole step.
                    accelerator.backward(loss * accelerator.num_processes)
                    total += float(loss.detach())
            norm = accelerator.clip_grad_norm_(self.learned, settings.max_grad_norm)
            self._expect_finite("the gradient's length", norm, shards)
            self.optimiser.step()
            self.optimiser.zero_grad()
        figures = {"learning_rate": rate, "gradient_norm": float(norm), "loss": total}
        for name in shards[0].figures or {}:
            figures[name] = float(np.mean([shard.figures[name] for shard in shards if shard.figures]))
        if accelerator.num_processes > 1:
            names = [name for name in figures if name not in ("learning_rate", "gradient_norm")]
            local = torch.tensor([figures[name] for name in names], device=accelerator.device)
            mean = accelerator.reduce(local, "mean").tolist()
            figures |= dict(zip(names, mean, strict=True))
            figures["loss"] *= accelerator.num_processes
        self.responses += settings.prompts * settings.group
        if figures.get("kl", 0.0) > settings.max_kl:
            self._diverged(f"the KL to the reference is {figures['kl']:.0f} nats", shards)
        return figures

    # -- on policy -------------------------------------------------------------------------------------------------

    def _rollout(self, shard: int) -> Rollout:
        """Draw responses to a shard's prompts from the policy, score them and say what each is worth."""
        settings, data = self.settings, self.data
        count = settings.prompts // settings.shards
        begin = self.step * settings.prompts + shard * count
        chosen = [self._in_turn(len(data.prompts), place) for place in range(begin, begin + count)]
        prompts = [data.prompts[i] for i in chosen for _ in range(settings.group)]
        encoded = [self.prompt_ids[prompt] for prompt in prompts]
        seed = int(np.random.SeedSequence([settings.seed, self.step, shard]).generate_state(1, np.uint64)[0] >> 1)
        drawn = self.sampler.sample_tokens(encoded, data.sampling, seed=seed)
        rewards = checked_score(data.reward_model, prompts, drawn.texts.tolist())
        batch = self._batch(encoded, [row[row >= 0].tolist() for row in drawn.token_ids])
        log_probs = torch.as_tensor(drawn.log_probs)  # float64 stays on the CPU: Apple's GPUs have none
        self._expect_finite("a log-probability", log_probs, [Rollout(batch, prompts, log_probs)])
        with torch.no_grad():
            with cpu_kernels(self.frozen.model):
                reference, _ = self.frozen(batch)
            old = self.policy(batch) if settings.ppo else None
        judged = Judged(
            prompts,
            drawn.texts.tolist(),
            log_probs,
            reference.cpu().double().sum(1),
            torch.as_tensor(rewards),
        )
        returns = self._eased().returns(judged, data.cdf)
        figures = {
            "reward": float(rewards.mean()),
            "kl": float((judged.log_probs - judged.ref_log_probs).mean()),
            "entropy": float(-judged.log_probs.mean()),
            "return": float(returns.mean()),
        }
        return Rollout(batch, prompts, reference, returns, old, figures)

    def _eased(self) -> OnPolicy:
        """The method with as much pull as it has at this step."""
        return self.method.eased(self.settings.pull_at(self.step))  # type: ignore[union-attr]

    def _advantages(self, shards: Sequence[Rollout]) -> list[Tensor]:
        """How much better than expected each response (or with PPO each token) was."""
        if self.examples is not None:
            return [torch.empty(0)] * len(shards)
        if self.settings.ppo is None:
            group, device = self.settings.group, self.accelerator.device
            return [losses.leave_one_out(_given(s.returns), group=group).float().to(device) for s in shards]
        per_token = [self._token_advantages(shard, self.settings.ppo) for shard in shards]
        everything = torch.cat([a[s.batch.response_mask.bool()] for a, s in zip(per_token, shards, strict=True)])
        moments = torch.stack([everything.sum(), everything.square().sum(), torch.ones_like(everything).sum()])
        total, squares, count = self.accelerator.reduce(moments, "sum")
        mean = total / count
        scale = (squares / count - mean**2).clamp(min=1e-12).sqrt()
        return [(a - mean) / scale for a in per_token]

    def _token_advantages(self, shard: Rollout, ppo: Ppo) -> Tensor:
        _, values = _given(shard.old)
        return losses.gae(
            self._token_rewards(shard), values, shard.batch.response_mask.sum(1), discount=1.0, trace=ppo.trace
        )

    def _token_rewards(self, shard: Rollout) -> Tensor:
        """The return spread over tokens: each pays its part of the KL, the last gets the rest."""
        ratios = (_given(shard.old)[0] - shard.reference) * self._eased().kl_coefficient
        rewards = -ratios
        last = shard.batch.response_mask.sum(1) - 1
        rewards[torch.arange(len(last)), last] += _given(shard.returns).float().to(ratios.device) + ratios.sum(1)
        return rewards

    # -- off policy ------------------------------------------------------------------------------------------------

    def _examples(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        data, needs = self.data, self.method.needs_draws  # type: ignore[union-attr]
        if data.draws is None or data.rewards is None or data.rewards.shape[1] < needs:
            have = 0 if data.rewards is None else data.rewards.shape[1]
            raise ValueError(f"data has {have} draws a prompt; {self.method} learns from {needs}: draw more")
        prompts, draws = self.method.examples(data.rewards, seed=self.settings.seed)  # type: ignore[union-attr]
        if not len(prompts):
            raise ValueError(f"{self.method} finds no example in the draws: are all rewards of a prompt equal?")
        if isinstance(self.method, Bonbon):
            self.method = self.method.balanced(data.draws.log_probs[prompts, draws[:, 0]])
        return prompts, draws

    def _taken(self, shard: int) -> Rollout:
        """A shard of the examples, which come in a new random order in every epoch."""
        data, settings = self.data, self.settings
        prompts, draws = _given(self.examples)
        roles = draws.shape[1]
        whole = settings.prompts * settings.group // roles
        count = whole // settings.shards
        begin = self.step * whole + shard * count
        chosen = [self._in_turn(len(prompts), place) for place in range(begin, begin + count)]
        pairs = [(int(prompts[example]), int(draw)) for example in chosen for draw in draws[example]]
        stored = _given(data.draws)
        rows = [stored.responses[p].token_ids[d] for p, d in pairs]
        names = [data.prompts[p] for p, _ in pairs]
        batch = self._batch([self.prompt_ids[name] for name in names], [row[row >= 0].tolist() for row in rows])
        reference = torch.tensor([stored.responses[p].log_probs[d] for p, d in pairs])
        return Rollout(batch, names, reference.view(-1, roles))

    # -- both ------------------------------------------------------------------------------------------------------

    def _loss(self, shard: Rollout, advantages: Tensor) -> Tensor:
        """Mean loss of a shard."""
        log_probs, values = self.policy(shard.batch)
        self._expect_finite("a log-probability", log_probs, [shard])
        ppo = self.settings.ppo
        if self.examples is not None:
            roles = shard.reference.shape[1]
            summed = log_probs.cpu().double().sum(1).view(-1, roles)
            return self.method.loss(summed, shard.reference).mean()  # type: ignore[union-attr]
        if ppo is None:
            return losses.reinforce(log_probs.sum(1), advantages).mean()
        old_log_probs, old_values = _given(shard.old)
        targets = self._token_advantages(shard, ppo) + old_values
        real = shard.batch.response_mask.bool()
        on_policy = losses.ppo(log_probs[real], old_log_probs[real], advantages[real], clip=ppo.clip)
        on_values = losses.ppo_value(
            _given(values)[real], old_values[real], targets[real].detach(), clip=ppo.value_clip
        )
        return (on_policy + ppo.value_weight * on_values).sum() / len(real)

    def _batch(self, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> TokenBatch:
        return token_batch(
            prompts, responses, pad_id=self.reference.tokenizer.pad_token_id, device=self.accelerator.device
        )

    def _in_turn(self, count: int, place: int) -> int:
        """Which of `count` things comes at a place of an endless row of shuffled rounds."""
        which, within = divmod(place, count)
        if getattr(self, "_round", None) != (count, which):
            self._round = (count, which)
            self._order = np.random.default_rng([self.settings.seed, which]).permutation(count)
        return int(self._order[within])

    # -- trouble ---------------------------------------------------------------------------------------------------

    def _expect_finite(self, name: str, numbers: Tensor, shards: Sequence[Rollout]) -> None:
        if not bool(numbers.isfinite().all()):
            self._diverged(f"{name} is {float(numbers[~numbers.isfinite()].flatten()[0])}", shards)

    def _diverged(self, what: str, shards: Sequence[Rollout]) -> None:
        weights = [name for name, p in self.policy.named_parameters() if not bool(p.isfinite().all())]
        returns = [s.returns for s in shards if s.returns is not None]
        if weights:
            cause = f"weights that are not finite ({weights[0]}): the step before was too long, lower learning_rate"
        elif any(not bool(r.isfinite().all()) for r in returns):
            cause = (
                "a return that is not finite: log F of a response is −inf (smooth the CDF), or its reward is extreme"
            )
        elif what.startswith("the KL"):
            cause = "too weak a regulariser or too long steps: raise beta (lower n), or lower learning_rate"
        else:
            cause = (
                "steps too long or numbers too large for the format: lower learning_rate, or take precision 'no' in "
                "another process"
            )
        prompts = list(dict.fromkeys(prompt for shard in shards for prompt in shard.prompts))
        kept = self.files.newest
        raise DivergedError(
            f"step {self.step + 1} of {self.folder.name}: {what}. Batch: {prompts[:4]} and {max(len(prompts) - 4, 0)} "
            f"more. Likely cause: {cause}. Last good checkpoint: {kept or 'none yet'}"
        )

    # -- where it is -----------------------------------------------------------------------------------------------

    def _about(self) -> dict[str, Any]:
        """What makes this run another than others."""
        return {
            "method": type(self.method).__name__,
            **asdict(self.method),  # type: ignore[call-overload]
            "settings": asdict(self.settings),
            "sampling": asdict(self.data.sampling),
            "reference": self.reference.fingerprint,
            "reward_model": self.data.reward_model.fingerprint,
            "prompts": hashlib.sha256(json.dumps(list(self.data.prompts)).encode()).hexdigest(),
            "learned_from": self._learned_from(),
        }

    def _learned_from(self) -> str | None:
        """A hash of the draws an off-policy method learns from, or of the CDF that an on-policy one is told."""
        if self.examples is None:
            return getattr(self.data.cdf, "fingerprint", None)
        tables = (_given(self.data.rewards), _given(self.data.draws).log_probs)
        return hashlib.sha256(b"".join(np.ascontiguousarray(table).tobytes() for table in tables)).hexdigest()

    def _progress(self) -> Progress:
        return {name: getattr(self, name) for name in PROGRESS}

    def _go_on_from(self, progress: Progress | None) -> None:
        for name, value in (progress or {}).items():
            setattr(self, name, value)


def _trainable(model: Any, lora_rank: int) -> Any:
    """A copy of the model in single precision, to be trained whole; or with an adapter, which alone is trained."""
    policy = copy.deepcopy(model)
    if lora_rank == 0:
        return policy.float().requires_grad_(True)
    import peft

    config = peft.LoraConfig(
        r=lora_rank,
        lora_alpha=2 * lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in policy.modules()),  # GPT-2's layers
    )
    return peft.get_peft_model(policy.requires_grad_(False), config)


def _given(value: Any) -> Any:
    assert value is not None
    return value
