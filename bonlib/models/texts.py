"""Texts to tokens and back: prompts, chats and responses, whatever the tokenizer does at the ends of a text."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from bonlib.checks import shown, strings

Turns = Sequence[str | Mapping[str, str]]
ANCHOR = "a"  # its last token is an ordinary one, behind which a response reads as it does behind any text


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of B texts, special tokens included, each with one beginning-of-text token at most.

    A chat template writes that token itself; a tokenizer that puts it before every text would make it two.
    """
    if not len(texts):
        return []
    encoded = [list(ids) for ids in tokenizer(list(texts))["input_ids"]]
    begin = {tokenizer.bos_token_id, getattr(tokenizer, "cls_token_id", None)} - {None}
    for place, ids in enumerate(encoded):
        if len(ids) > 1 and ids[0] == ids[1] and ids[0] in begin:
            written = texts[place].startswith(tokenizer.convert_ids_to_tokens(ids[0]))
            if written and list(tokenizer(ANCHOR)["input_ids"])[:1] == [ids[0]]:
                encoded[place] = ids[1:]
    return encoded


def encode_prompts(
    tokenizer: Any, context: int, prompts: Sequence[str], max_new_tokens: int, *, vocabulary: int | None = None
) -> list[list[int]]:
    """Return the token ids of each prompt.

    Args:
        tokenizer: of the model that is to continue them.
        context: tokens that the model can attend to.
        prompts: at least one, not empty.
        max_new_tokens: tokens to leave room for.
        vocabulary: tokens that the model knows, if not all those of the tokenizer.

    Raises:
        ValueError: naming the prompt which is no text, has no tokens, does not fit or has tokens the model lacks.
    """
    texts = strings("prompts", prompts, least=1)
    if tokenizer is None:
        raise ValueError("the model has no tokenizer: load it from a folder that has one, or give LoadedModel one")
    distinct = list(dict.fromkeys(texts))
    encoded = token_ids(tokenizer, distinct)
    known = {text: _to_be_continued(tokenizer, text, ids) for text, ids in zip(distinct, encoded, strict=True)}
    room = context - max_new_tokens
    for index, text in enumerate(texts):
        ids = known[text]
        if not ids:
            raise ValueError(f"prompts[{index}] is {shown(text)}, which has no tokens: {_why_empty(tokenizer, text)}")
        if len(ids) > room:
            raise ValueError(
                f"prompts[{index}] ({text[:40]!r}…) has {len(ids)} tokens; with {max_new_tokens} new "
                f"ones the model's context of {context} leaves {room}: shorten it or max_new_tokens"
            )
        if vocabulary is not None and max(ids) >= vocabulary:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise ValueError(
                f"prompts[{index}] ({text[:40]!r}…) has the token {token!r} ({max(ids)}), but the model knows only "
                f"{vocabulary}: leave it out, or resize the model's embeddings and train them"
            )
    return [known[text] for text in texts]


def _to_be_continued(tokenizer: Any, text: str, ids: list[int]) -> list[int]:
    """The tokens of a text without the end token or separator that some tokenizers put behind every text."""
    ends = {tokenizer.eos_token_id: tokenizer.eos_token}
    ends[getattr(tokenizer, "sep_token_id", None)] = getattr(tokenizer, "sep_token", None)
    if len(ids) > 1 and ends.get(ids[-1]) and not text.endswith(ends[ids[-1]]):
        return ids[:-1]
    return ids


def _why_empty(tokenizer: Any, text: str) -> str:
    if text == "":
        return "give it at least one character"
    if not tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]:
        return "the tokenizer knows no text at all; load the model's own"
    return "the tokenizer drops all of its characters; give it others"


def response_texts(tokenizer: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> list[str]:
    """Return B responses as texts; prompt and text are what all tokens read as, unless that changes the prompt.

    Prompt and response are decoded together and the prompt cut off, since some tokenizers drop the space at the
    beginning of a text. Where the prompt's end reads otherwise in front of the response (bytes that make one character,
    or none), the response is decoded behind an ordinary token instead.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    heads = tokenizer.batch_decode(list(prompts), **options)
    wholes = tokenizer.batch_decode([p + r for p, r in zip(prompts, responses, strict=True)], **options)
    # A replacement character at the prompt's end may stand for bytes of either.
    apart = [not whole.startswith(head) or head.endswith("\ufffd") for head, whole in zip(heads, wholes, strict=True)]
    if any(apart):
        anchor = list(tokenizer(ANCHOR, add_special_tokens=False)["input_ids"])[-1:]
        for place in (place for place, alone in enumerate(apart) if alone):
            heads[place] = tokenizer.decode(anchor, **options)
            wholes[place] = tokenizer.decode(anchor + list(responses[place]), **options)
    return [whole.removeprefix(head) for whole, head in zip(wholes, heads, strict=True)]


def chat_prompt(tokenizer: Any, request: str | Turns, *, system: str | None = None, **template_options: Any) -> str:
    """Return a conversation as the text that a chat model continues with its answer.

    Args:
        tokenizer: of the model, with a chat template.
        request: what the user writes; or the turns so far, each a `{"role": …, "content": …}`, or strings of user and
            assistant by turns, the user's first.
        system: what the model is told beforehand.
        template_options: for the template, such as `enable_thinking=False`, or for `apply_chat_template`, such as
            `tools=…`; with `add_generation_prompt=False` the last turn may be the assistant's.

    Raises:
        ValueError: if the tokenizer has no chat template, a turn is none, or the template takes not all of this.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template: prompt such a model with plain text"
        )
    messages = _messages(request, system)
    open_end = {"add_generation_prompt", "continue_final_message"} & template_options.keys()
    if messages[-1]["role"] == "assistant" and not open_end:
        raise ValueError(
            "the last turn of request is the assistant's, so there is nothing to answer: end with the user's, or say "
            "add_generation_prompt=False"
        )
    known = inspect.signature(tokenizer.apply_chat_template).parameters.keys() - {"conversation", "tokenize", "kwargs"}
    for name in template_options.keys() - known:
        if name not in str(tokenizer.chat_template):
            raise ValueError(f"template option {name!r} is unknown to the chat template of {tokenizer.name_or_path!r}")
    options = {"add_generation_prompt": not open_end, **template_options, "tokenize": False}
    try:
        text = str(tokenizer.apply_chat_template(messages, **options))
    except Exception as error:  # templates raise what they like
        raise ValueError(f"the chat template of {tokenizer.name_or_path!r} refuses these turns: {error}") from error
    if messages[0]["role"] == "system" and messages[0]["content"].strip() not in text:
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} ignores the system message: write it into the request"
        )
    # Some templates write the first token that their tokenizer puts before every text anyway.
    begins = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if begins else text


def _messages(request: str | Turns, system: str | None) -> list[dict[str, Any]]:
    if isinstance(request, str):
        request = [request]
    if isinstance(request, Mapping) or not isinstance(request, Sequence) or not request:
        raise ValueError(f"request is {shown(request)}; it must be a string or a list of turns, at least one")
    if all(isinstance(turn, str) for turn in request):
        texts = strings("request", request)
        messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    else:
        for index, turn in enumerate(request):
            if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
                raise ValueError(
                    f"request[{index}] is {shown(turn)}; a turn is a dictionary with a role and a content, and all "
                    "turns are such, or all are strings"
                )
            strings(f"request[{index}]'s role and content", [turn["role"], turn["content"]])
        messages = [dict(turn) for turn in request]  # type: ignore[arg-type]
    if system is None:
        return messages
    if messages[0]["role"] == "system":
        raise ValueError("system is given, and request begins with a system message too: leave one of them out")
    return [{"role": "system", "content": strings("system", [system])[0]}, *messages]
