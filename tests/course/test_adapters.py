"""Adapters on a small random model: trained, saved in half precision and loaded again; measures of reward models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from toy_training import DOCUMENTS, EXAMPLES

from bonlib.course.making.adapters import (
    documents_for,
    judged,
    ranked,
    response_ids,
    write_card,
    write_summaries,
)
from bonlib.course.making.documents import Document
from bonlib.draws.rewards import ClassifierReward, FunctionReward
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models.loaded import load_classifier, load_language_model
from bonlib.models.reading import response_log_probs
from bonlib.training.policy import trainable


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_finetuning_makes_the_summary_likelier_and_saves_half_precision(llama_folder, finetuned_folder):
    before, after = (
        load_language_model(llama_folder, dtype="bfloat16"),
        load_language_model(finetuned_folder, dtype="bfloat16"),
    )
    likely = []
    for loaded in (before, after):
        drawn = TransformersSampler(loaded).sample(["x"], SamplingSettings(4), seed=0)
        ids = np.array([response_ids(loaded.tokenizer, "a very bad film")])
        people = replace(drawn, token_ids=ids)
        likely.append(response_log_probs(loaded, [DOCUMENTS[0].prompt(DOCUMENTS[0].text)], people)[0])
    assert likely[1] > likely[0] + 1
    weights = load_file(finetuned_folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert {name.split(".")[-3] for name in weights} == {"q_proj", "v_proj"}


def test_a_policy_starts_as_the_adapter_and_trains_nothing_else(finetuned_folder):
    loaded = load_language_model(finetuned_folder, dtype="bfloat16")
    policy = trainable(loaded.model, 0)
    learned = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert learned
    assert all("lora_" in name for name in learned)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in policy.parameters() if parameter.requires_grad} == {torch.float32}
    ids = torch.arange(10)[None]
    torch.testing.assert_close(policy(ids).logits, loaded.model(ids).logits, atol=0.05, rtol=0.05)  # another attention
    with pytest.raises(ValueError, match="the reference has an adapter"):
        trainable(loaded.model, 4)


def test_a_reward_model_learns_to_tell_summaries_apart(reward_folders):
    loaded = load_classifier(reward_folders[0], dtype="bfloat16")
    assert next(loaded.model.get_base_model().score.parameters()).dtype == torch.float32
    reward_model = ClassifierReward(loaded)
    assert list(judged(reward_model, EXAMPLES).values()) == pytest.approx([1.0, 1.0, 1.0])
    # What is read with a shared prompt, and twice, is what is read alone.
    prompts = [example.prompt for example in EXAMPLES]
    together = reward_model.score(prompts * 2, [" a film"] * 16)
    alone = [reward_model.score([prompt], [" a film"])[0] for prompt in prompts]
    np.testing.assert_allclose(together, alone * 2, atol=0.05)
    assert np.array_equal(together[:8], together[8:])


def test_a_reward_model_is_the_same_after_every_load(reward_folders):
    first, again = (load_classifier(reward_folders[0], dtype="bfloat16") for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != load_classifier(reward_folders[1], dtype="bfloat16").fingerprint


def test_a_reward_is_read_behind_the_suffix(reward_folders):
    loaded = load_classifier(reward_folders[0], dtype="bfloat16")
    plain, suffixed = ClassifierReward(loaded), ClassifierReward(loaded, suffix=" the end")
    rewards = suffixed.score(["A film"] * 2, [" good", " bad"])
    np.testing.assert_array_equal(rewards, plain.score(["A film"] * 2, [" good the end", " bad the end"]))
    assert plain.fingerprint == ClassifierReward(loaded).fingerprint != suffixed.fingerprint


def test_summaries_are_ranked_by_person_and_rouge():
    document = Document("irrelevant", ("the cat sat on the mat", "a cat"))
    made = ranked(document, "prompt", ["the cat sat", "dogs", "the cat ran", "the cat sat on the mat"], 0.05)
    assert made.summaries[0] == "the cat sat on the mat"
    assert {pair for pair in made.pairs if pair[0] == 0} == {(0, 1), (0, 2), (0, 3)}  # not against itself
    assert {(4, 1), (4, 2), (1, 2), (3, 2)} <= set(made.pairs)
    assert (2, 1) not in made.pairs


def test_a_judge_that_is_rouge_itself_agrees_with_it():
    documents = [Document("x", ("the cat sat on the mat",)), Document("y", ("dogs run far away",))]
    written = ["the cat sat", "dogs", "the cat ran far"]
    examples = [ranked(document, document.text, written, 0.01) for document in documents]
    close = {(e.prompt, f" {s}"): c for e in examples for s, c in zip(e.summaries, (2.0, *e.closeness), strict=True)}
    reward = FunctionReward(lambda prompt, response: close[prompt, response], name="rouge")
    found = judged(reward, examples)
    assert (found["accuracy_person"], found["accuracy_model"]) == (1.0, 1.0)
    assert found["rouge_correlation"] == pytest.approx(1.0)
    assert judged(FunctionReward(lambda p, r: -close[p, r], name="minus"), examples)["accuracy_model"] == 0.0


def test_summaries_are_not_written_twice(llama_folder, tmp_path):
    sampler = TransformersSampler(load_language_model(llama_folder))
    prompts = [f"the film {place}" for place in range(20)]
    whole = write_summaries(sampler, prompts, (1.0, 0.5, 1.0), tmp_path / "whole.jsonl", seed=3)
    assert [len(answers) for answers in whole] == [3] * 20
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_text("".join(lines[:16]) + lines[16][:9])  # killed while it wrote
    assert write_summaries(sampler, prompts, (1.0, 0.5, 1.0), tmp_path / "part.jsonl", seed=3) == whole


def test_the_data_of_proxy_and_gold_do_not_meet(tmp_path):
    import json

    for file, count in (("train", 40), ("dev", 210), ("test", 310)):
        rows = [json.dumps({"source": [f"{file} {place}"], "target": ["t"]}) for place in range(count)]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(rows))
    parts = {which: set(documents_for(which, str(tmp_path))) for which in ("sft", "proxy", "gold", "heldout")}
    assert [len(parts[which]) for which in ("sft", "proxy", "gold", "heldout")] == [40, 20, 224, 300]
    assert not parts["proxy"] & parts["gold"]
    assert not parts["heldout"] & (parts["sft"] | parts["gold"])
    with pytest.raises(ValueError, match="which is 'silver'"):
        documents_for("silver", str(tmp_path))


def test_a_card_says_what_it_is(finetuned_folder):
    write_card(finetuned_folder, "Sums up.", "pretrain sft", {"accuracy_held out": 0.5})
    text = (finetuned_folder / "README.md").read_text()
    for part in (
        "base_model:",
        "Sums up.",
        "`python -m bonlib pretrain sft`",
        "| accuracy held out | 0.500 |",
        "CPU thread",
    ):
        assert part in text
