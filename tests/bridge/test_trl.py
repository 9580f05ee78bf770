"""vBoN by TRL's RLOOTrainer: steps like ours on the same draws, and what would be another objective is refused."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from toy_training import PROMPTS, SHORT, vowels

from bonlib.bridge.trl import VbonReward, check_vbon, paced, vbon_config, vbon_trainer
from bonlib.draws.rewards import CutPenalty, FunctionReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.draws.store import SampleStore
from bonlib.methods.vbon_bound import VbonBound
from bonlib.models.loaded import load_language_model
from bonlib.training.gradients import leave_one_out, reinforce_loss
from bonlib.training.learner import PromptTokens, summed
from bonlib.training.on_policy import Judged
from bonlib.training.policy import Policy
from bonlib.training.reward_cdf import SampledCdf
from bonlib.training.settings import Ppo, TrainingData

pytestmark = [
    pytest.mark.usefixtures("one_accelerator"),
    pytest.mark.filterwarnings("ignore:.*(checkpointing|pin_memory).*"),
]
SETTINGS = replace(SHORT, steps=3, warmup=0, learning_rate=0.02)
QUIET = {"disable_tqdm": True, "save_strategy": "no", "gradient_checkpointing": False}


@pytest.fixture(scope="module")
def llama(tmp_path_factory, language_model_folder):
    """A random model with relative positions, with which padding is no other law."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "random-llama"
    tokenizer = AutoTokenizer.from_pretrained(language_model_folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=48, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=1,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_language_model(folder, device="cpu")


@pytest.fixture(scope="module")
def data(llama, tmp_path_factory):
    """64 draws a prompt, scored, and their CDF."""
    reward, sampling = FunctionReward(vowels, name="vowels"), SamplingSettings(8)
    store = SampleStore(tmp_path_factory.mktemp("store"))
    draws = store.draw(TransformersSampler(llama), PROMPTS, 64, sampling, seed=0)
    rewards = store.score(reward, draws)
    return TrainingData(PROMPTS, reward, sampling, draws, rewards, SampledCdf(PROMPTS, rewards))


def first(data, prompts):
    """The data of some prompts alone."""
    rows = [PROMPTS.index(prompt) for prompt in prompts]
    draws = replace(data.draws, prompts=prompts, responses=[data.draws.responses[row] for row in rows])
    return replace(data, prompts=prompts, draws=draws, rewards=data.rewards[rows])


@pytest.fixture
def made(llama, data, tmp_path):
    """Return what makes a trainer, with other options than the right ones if asked."""

    def make(n=4, data=data, settings=SETTINGS, model=llama.model.config.name_or_path, **options):
        return vbon_trainer(model, n, data, settings, tmp_path, **QUIET, **options)

    return make


@pytest.mark.parametrize("shards", [1, 2])
def test_steps_are_those_of_our_loop_on_the_same_draws(made, llama, data, shards):
    trainer = made(settings=replace(SETTINGS, shards=shards), optim="sgd")
    seen, reward = [], trainer.reward_funcs[0]

    def watched(**given):
        seen.append((given["prompts"], given["completions"], given["completion_ids"]))
        return reward(**given)

    trainer.reward_funcs[0] = watched
    trainer.train()
    assert len(seen) == 3

    policy = Policy(load_language_model(llama.model.config.name_or_path, device="cpu").model)
    reference, tokens = Policy(llama.model), PromptTokens(llama, data)
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)
    for step, (prompts, texts, ids) in enumerate(seen):
        batch = tokens.batch(prompts, ids)
        log_probs, _ = policy(batch)
        rewards = torch.from_numpy(data.reward_model.score(prompts, texts))
        judged = Judged(prompts, texts, summed(log_probs.detach()), summed(reference.read(batch)), rewards)
        returns = VbonBound(4).returns(judged, data.cdf)
        loss = reinforce_loss(log_probs.sum(1), leave_one_out(returns, group=SETTINGS.group).float()).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), SETTINGS.max_grad_norm)
        optimiser.param_groups[0]["lr"] = SETTINGS.learning_rate_at(step)
        optimiser.step()
    moved = [(a - b).abs().max() for a, b in zip(policy.parameters(), llama.model.parameters(), strict=True)]
    apart = [(a - b).abs().max() for a, b in zip(policy.parameters(), trainer.model.parameters(), strict=True)]
    print(f"largest difference of a weight {max(apart):.2g}, after moves of up to {max(moved):.2g}")
    assert max(moved) > 1e-3
    assert max(apart) < 4e-7


def test_the_reward_is_what_our_return_adds_to_the_kl(data):
    texts = [data.draws.texts[i, 0] for i in range(len(PROMPTS))]
    rewards = data.reward_model.score(PROMPTS, texts)
    log_cdf = data.cdf.log_weak(PROMPTS, texts, rewards)
    assert VbonReward(4, data)(PROMPTS, texts) == pytest.approx(3 * log_cdf)
    assert VbonReward(1, data)(PROMPTS, texts) == [0.0] * 4
    eased = VbonReward(4, data, replace(SETTINGS, steps=10, easing=0.5))
    for step, part in ((0, 0.2), (4, 1.0), (9, 1.0)):
        state = SimpleNamespace(global_step=step)
        assert eased(PROMPTS, texts, trainer_state=state) == pytest.approx(3 * part * log_cdf)


def test_a_reward_of_tokens_sees_them(data, llama):
    judged = CutPenalty(data.reward_model, llama.end_token_ids, penalty=1.0)
    cut = replace(data, reward_model=judged)
    found = VbonReward(4, cut)(PROMPTS[:2], ["a", "a"], [[9, 0], [9]])
    whole = VbonReward(4, data)(PROMPTS[:2], ["a", "a"])
    assert found[0] == pytest.approx(whole[0])
    assert found[1] < whole[1]


REFUSED = {
    "beta": 0.5, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.05, "repetition_penalty": 1.1,
    "generation_kwargs": {"suppress_tokens": [5]}, "normalize_advantages": True, "num_iterations": 2,
    "reward_clip_range": (-5, 0), "reward_weights": [2.0], "mask_truncated_completions": True, "sync_ref_model": True,
    "disable_dropout": False, "neftune_noise_alpha": 5.0, "weight_decay": 0.1, "steps_per_generation": 2,
    "max_completion_length": 4,
}  # fmt: skip


def test_options_that_make_another_objective_are_refused(made, data, tmp_path):
    trainer = made()
    for name, value in REFUSED.items():
        trainer.args = vbon_config(data, SETTINGS, tmp_path, **{name: value})
        with pytest.raises(ValueError, match=f"^{name} is {re.escape(str(value))}") as caught:
            check_vbon(trainer)
        assert "\n" not in str(caught.value)
    trainer.args = vbon_config(data, SETTINGS, tmp_path, top_k=None)  # which `generate` takes for 50
    with pytest.raises(ValueError, match="top_k is None"):
        check_vbon(trainer)
    trainer.args = vbon_config(data, SETTINGS, tmp_path, min_p=0.0, weight_decay=0)
    check_vbon(trainer)


def test_what_a_model_brings_along_is_refused(made, llama, language_model_folder, data):
    from transformers import AutoModelForCausalLM

    def model():
        return AutoModelForCausalLM.from_pretrained(llama.model.config.name_or_path)

    check_vbon(made(model=model()))
    repeated = model()
    repeated.generation_config.no_repeat_ngram_size = 2
    with pytest.raises(ValueError, match=r"generation_config.no_repeat_ngram_size is 2"):
        made(model=repeated)
    moved = model()
    moved.lm_head.weight.data += 0.01
    with pytest.raises(ValueError, match="model has other weights than"):
        made(model=moved)
    dropping = model()
    dropping.model.layers[0].self_attn.attention_dropout = 0.1  # a number of Llama's, which TRL does not turn off
    with pytest.raises(ValueError, match=r"model.layers.0.self_attn.attention_dropout is 0.1"):
        made(model=dropping)
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel moves \d+% of its probability where a prompt is padded"):
        made(model=str(language_model_folder))
    with pytest.raises(ValueError, match="draws are those of"):
        made(model=str(language_model_folder), data=first(data, PROMPTS[:1]), settings=replace(SETTINGS, prompts=1))


def test_settings_that_do_not_fit_are_named(made, data, monkeypatch):
    with pytest.raises(ValueError, match="ppo is set"):
        made(settings=replace(SETTINGS, ppo=Ppo()))
    with pytest.raises(ValueError, match="prompts is 8 a step, and data has 4"):
        made(settings=replace(SETTINGS, prompts=8))
    with pytest.raises(ValueError, match="lora_rank is 8; TRL takes a peft_config"):
        made(settings=replace(SETTINGS, lora_rank=8))
    nothing = SimpleNamespace(log_weak=lambda *_: [-1.0, -float("inf")])
    with pytest.raises(ValueError, match="log F≤ of the response 'b' is not finite"):
        VbonReward(4, replace(data, cdf=nothing))(PROMPTS[:2], ["a", "b"])
    with pytest.raises(ValueError, match="cdf is None"):
        made(data=replace(data, cdf=None))
    with pytest.raises(ValueError, match=r"n is 0\.5"):
        made(n=0.5)
    with pytest.raises(ValueError, match="prompts are conversations"):
        VbonReward(4, data)([[{"role": "user", "content": "a"}]], [[{"role": "assistant", "content": "b"}]])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="shards is 1 for 2 processes"):
        made()


def test_rewards_of_others_beside_it_are_refused(made):
    trainer = made()
    trainer.reward_funcs.append(lambda **_: [0.0])
    with pytest.raises(ValueError, match="reward_funcs is"):
        check_vbon(trainer)


def test_examples_are_shared_out_in_whole_shards_among_all_processes(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="shards is 3 for 8 examples"):
        paced(dict, replace(SETTINGS, prompts=3, shards=3), tmp_path, 8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, and TRL counts 1; each process would train alone"):
        paced(lambda **_: SimpleNamespace(world_size=1), replace(SETTINGS, shards=2), tmp_path, 8)


def test_an_adapter_may_be_trained_in_place_of_the_weights(made):
    from peft import LoraConfig

    trainer = made(settings=replace(SETTINGS, steps=1), peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    trainer.train()
    assert trainer.ref_model is None
    assert any(bool(p.any()) for name, p in trainer.model.named_parameters() if "lora_B" in name)
