"""BoN-SFT and pairs by TRL: one step is ours, on the tokens that were drawn; and what TRL's own losses are instead."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_training import SHORT

from bonlib.bridge.trl_offline import bon_sft_trainer, pair_trainer
from bonlib.methods.bon_sft import BonSft
from bonlib.methods.bonbon import Bonbon
from bonlib.methods.dpo import Dpo
from bonlib.methods.qrpo import Qrpo
from bonlib.models.loaded import load_language_model
from bonlib.training.learner import PromptTokens
from bonlib.training.off_policy import resampled
from bonlib.training.policy import Policy

pytestmark = [
    pytest.mark.usefixtures("one_accelerator"),
    pytest.mark.filterwarnings("ignore:.*(checkpointing|pin_memory).*"),
]
QUIET = {"disable_tqdm": True, "save_strategy": "no", "gradient_checkpointing": False, "optim": "sgd"}
STEP = replace(SHORT, steps=1, warmup=0, learning_rate=0.05, max_grad_norm=1e9)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def our_step(loaded, data, method, settings, rate=None):
    """Weights after one step of SGD on all examples, and the tokens of these."""
    prompts, chosen, often, _ = method.examples(data.rewards, seed=settings.seed)
    if often is not None:
        taken = resampled(often, len(often), np.random.default_rng(settings.seed))
        prompts, chosen = prompts[taken], chosen[taken]
    method = method.balanced(data.draws.log_probs[prompts, chosen[:, 0]])
    places = [(p, d) for p, row in zip(prompts, chosen, strict=True) for d in row]
    batch = PromptTokens(loaded, data).batch(
        [data.prompts[p] for p, _ in places], [data.draws.responses[p].token_ids[d].tolist() for p, d in places]
    )
    reference = torch.tensor([data.draws.responses[p].log_probs[d] for p, d in places]).view(chosen.shape)
    policy = Policy(load_language_model(loaded.model.config.name_or_path, device="cpu").model)
    log_probs = policy(batch)[0].sum(1).view(chosen.shape)
    loss = method.loss(log_probs, reference.float()).mean()
    loss.backward()
    torch.optim.SGD(policy.parameters(), lr=rate or settings.learning_rate).step()
    return weights(policy), int(batch.response_mask.sum()), len(places)


@pytest.mark.parametrize("method", [Bonbon(4), Bonbon(4, picks="groups"), Dpo(0.5), Dpo(0.05, identity=True)], ids=repr)
def test_a_step_on_pairs_is_ours(method, language_model, training_data, tmp_path):
    pairs = len(method.examples(training_data.rewards, seed=0)[0])
    settings = replace(STEP, prompts=2, group=pairs, learning_rate=1e-4)
    trainer = pair_trainer(
        language_model.model.config.name_or_path, method, training_data, settings, tmp_path,
        tokenizer=language_model.tokenizer, **QUIET,
    )  # fmt: skip
    trainer.train()
    ours, _, _ = our_step(language_model, training_data, method, settings)
    moved = (ours - weights(language_model.model)).abs().max()
    apart = (ours - weights(trainer.model)).abs().max()
    print(f"{method}: largest difference of a weight {apart:.2g}, after moves of up to {moved:.2g}")
    assert apart < 4e-7 + 1e-5 * moved
    assert moved > 5e-5


def test_each_pair_comes_as_often_as_its_weight_says(language_model, training_data, tmp_path):
    method = Bonbon(4, 0.3, "weights")
    trainer = pair_trainer(
        language_model.model.config.name_or_path, method, training_data, STEP, tmp_path,
        tokenizer=language_model.tokenizer, **QUIET,
    )  # fmt: skip
    prompts, draws, weights, _ = method.examples(training_data.rewards, seed=STEP.seed)
    places = zip(prompts, draws[:, 0], strict=True)
    best = [training_data.draws.responses[p].token_ids[d].tolist() for p, d in places]
    often, wanted = Counter(), Counter()
    for row in trainer.train_dataset:
        often[str(row["chosen_ids"])] += 1
    for row, weight in zip(best, weights, strict=True):
        wanted[str([token for token in row if token >= 0])] += weight * len(weights) / weights.sum()
    assert often.total() == len(weights)
    assert max(abs(often[row] - count) for row, count in wanted.items()) < 0.1 * len(weights)
    assert np.corrcoef([[often[row], count] for row, count in wanted.items()], rowvar=False)[0, 1] > 0.95


def test_a_step_of_bon_sft_is_ours_but_for_the_mean_length(language_model, training_data, tmp_path):
    settings = replace(STEP, prompts=4, group=16)
    trainer = bon_sft_trainer(
        language_model.model.config.name_or_path, 4, training_data, settings, tmp_path,
        tokenizer=language_model.tokenizer, **QUIET,
    )  # fmt: skip
    trainer.model.eval()
    trainer.model.train = lambda mode=True: trainer.model  # dropout, which SFTTrainer leaves on
    trainer.train()
    _, tokens, responses = our_step(language_model, training_data, BonSft(4, "groups"), settings)
    shorter = settings.learning_rate * responses / tokens
    ours, _, _ = our_step(language_model, training_data, BonSft(4, "groups"), settings, rate=shorter)
    assert responses == 64
    assert (ours - weights(trainer.model)).abs().max() < 4e-7
    assert (ours - weights(language_model.model)).abs().max() > 1e-3


def test_trls_own_losses_are_bonbon_where_all_responses_are_as_long_and_nowhere_else(
    language_model, training_data, tmp_path
):
    trainer = pair_trainer(
        language_model.model.config.name_or_path, Bonbon(4, sft_weight=0.3), training_data, STEP, tmp_path,
        tokenizer=language_model.tokenizer, **QUIET,
    )  # fmt: skip
    trainer.model.eval().transformer.ln_f.weight.data.mul_(1.5)  # at the reference all log-ratios are 0
    rows = list(trainer.train_dataset)
    lengths = [{len(row["chosen_ids"]), len(row["rejected_ids"])} for row in rows]

    @torch.no_grad()
    def both(chosen):
        inputs = trainer.data_collator(chosen)
        theirs = type(trainer).__mro__[1]._compute_loss(trainer, trainer.model, dict(inputs), False)
        return float(trainer._compute_loss(trainer.model, inputs, False)), float(theirs)

    trainer.loss_types, trainer.loss_weights, trainer.beta = ["ipo", "sft"], [0.7 * 64, 0.3 * 8], 8 / (2 * 5.5)
    ours, theirs = both([row for row, length in zip(rows, lengths, strict=True) if length == {8}])
    assert ours == pytest.approx(theirs, rel=1e-5)
    apart = [both([row]) for row, length in zip(rows, lengths, strict=True) if length != {8}]
    ratios = [theirs / ours for ours, theirs in apart]
    print(f"TRL's loss over BoNBoN's, pair by pair where lengths differ: {min(ratios):.3f} to {max(ratios):.3f}")
    assert max(ratios) > 1.1 or min(ratios) < 0.9


def test_what_does_not_fit_is_named(language_model, training_data, tmp_path):
    folder, given = language_model.model.config.name_or_path, {"tokenizer": language_model.tokenizer}
    with pytest.raises(ValueError, match="learns from single responses"):
        pair_trainer(folder, BonSft(4), training_data, STEP, tmp_path, **given)
    with pytest.raises(ValueError, match=r"method is Qrpo\(.*targets, which TRL does not know"):
        pair_trainer(folder, Qrpo(0.5), training_data, STEP, tmp_path, **given)
    with pytest.raises(ValueError, match=r"data has 64 scored draws a prompt; .*learns from 100"):
        bon_sft_trainer(folder, 100, training_data, STEP, tmp_path, **given)
    equal = replace(training_data, rewards=0 * training_data.rewards)
    with pytest.raises(ValueError, match="finds no example"):
        pair_trainer(folder, Dpo(0.5), equal, STEP, tmp_path, **given)
    for options in ({"loss_type": ["ipo"]}, {"sync_ref_model": True}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is .*the objective is the method's own"):
            pair_trainer(folder, Bonbon(4), training_data, STEP, tmp_path, **given, **options)
    with pytest.raises(ValueError, match="packing is True"):
        bon_sft_trainer(folder, 4, training_data, STEP, tmp_path, **given, packing=True)
