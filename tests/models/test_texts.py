"""Texts to tokens and back, with tokenizers of each kind: byte-level, with byte fallback, of word pieces, unigrams."""

import re

import numpy as np
import pytest
from corpus import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.models.places import locate
from bonlib.models.texts import chat_prompt, encode_prompts, response_texts, token_ids


def words_tokenizer(template):
    """A tokenizer that begins or ends every text with a special token, as those of Gemma or T5 do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<bos>", "<eos>", "<pad>", "user", "hello", "model"]
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<bos>", 0), ("<eos>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }} {% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}model{% endif %}"
    )
    return tokenizer


SPECIAL = ["<unk>", "<s>", "</s>"]
WIDE = [*TEXTS, "a b c\n", "Größe, naïve café — 日本 😀 שלום"]


def byte_level():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        WIDE, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return made


def byte_fallback():
    """As that of Llama 2: words begin with ▁, a text too, and what is not in the vocabulary comes byte by byte."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = ["▁", "▁a", "▁b", "▁c", "a", "b", "c", "film", "▁film"]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    merges = [("▁", "a"), ("▁", "b"), ("▁", "c")]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def word_pieces():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    made.train_from_iterator(WIDE, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL))
    return made


def unigrams():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        WIDE, trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    )
    return made


def wrapped(made, begins=False):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if begins:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


KINDS = {kind.__name__: wrapped(kind(), begins=True) for kind in (byte_level, byte_fallback, word_pieces, unigrams)}


def read_alone(kind, tokenizer, ids):
    """What a response says, worked out from its tokens alone, as it stands behind a text."""
    pieces = [piece for piece in tokenizer.convert_ids_to_tokens(ids) if piece not in SPECIAL]
    if kind == "byte_level":
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        back = {letter: byte for byte, letter in bytes_to_unicode().items()}
        return bytes(back[letter] for letter in "".join(pieces)).decode(errors="replace")
    if kind == "word_pieces":
        return "".join(piece[2:] if piece.startswith("##") else f" {piece}" for piece in pieces)
    text, pending = "", b""
    for piece in [*pieces, ""]:
        if re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            pending += bytes([int(piece[3:5], 16)])
            continue
        try:
            text += pending.decode()
        except UnicodeDecodeError:
            text += "\ufffd" * len(pending)
        text, pending = text + piece.replace("▁", " "), b""
    return text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100)
@given(data=st.data())
def test_a_response_is_what_its_tokens_say(kind, data):
    tokenizer = KINDS[kind]
    prompt = data.draw(st.sampled_from(["a b\n", "the film", "Größe 日本 😀", "a", "b\ufffd", "x\n\n"]))
    response = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=8))
    (ids,) = encode_prompts(tokenizer, 100, [prompt], 8)
    (text,) = response_texts(tokenizer, [ids], [response])
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    head, whole = (tokenizer.decode(some, **options) for some in (ids, ids + response))
    if head:  # behind a prompt that reads as nothing, the response begins the text
        assert text == read_alone(kind, tokenizer, response)
    if whole.startswith(head) and not head.endswith("\ufffd"):
        assert head + text == whole


def test_the_prompt_is_not_in_the_response():
    tokenizer = KINDS["byte_fallback"]
    (ids,) = encode_prompts(tokenizer, 100, ["a b\n"], 2)
    response = tokenizer.convert_tokens_to_ids(["<0xE2>", "▁c"])
    assert response_texts(tokenizer, [ids], [response]) == ["\ufffd c"]


@pytest.mark.parametrize("name", ["imdb-gpt2-tiny", "smollm2-135m-instruct", "trigram-tiny"])
def test_the_bundled_tokenizers_read_as_before(name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(locate(name))
    generator = np.random.default_rng(0)
    prompts = [tokenizer(text)["input_ids"] for text in ("the film was", "a", "what is this\n", " b ")] * 100
    responses = [generator.integers(len(tokenizer), size=generator.integers(12)).tolist() for _ in prompts]
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    pairs = zip(prompts, responses, strict=True)
    before = [tokenizer.decode(p + r, **options).removeprefix(tokenizer.decode(p, **options)) for p, r in pairs]
    assert response_texts(tokenizer, prompts, responses) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_begins_once(kind):
    tokenizer = KINDS[kind]
    (plain,) = token_ids(tokenizer, ["a b"])
    assert plain[0] == 1
    assert 1 not in plain[1:]
    assert encode_prompts(tokenizer, 100, ["<s>a b"], 8)[0].count(1) == 1
    assert [ids.count(1) for ids in token_ids(tokenizer, ["<s>", "", "<s><s>a", "a<s>"])] == [1, 1, 2, 2]
    quiet = wrapped(globals()[kind]())  # one that adds nothing changes nothing
    assert [ids.count(1) for ids in token_ids(quiet, ["<s>a", "<s><s>a"])] == [1, 2]
    assert token_ids(tokenizer, []) == []


def test_a_classifier_token_begins_once_too(papers_judge):
    (plain, written) = token_ids(papers_judge, ["a film", "[CLS] a film"])
    assert plain == written
    # Of a prompt that is to be continued the separator goes.
    assert encode_prompts(papers_judge, 100, ["a film"], 8) == [plain[:-1]]
    assert encode_prompts(papers_judge, 100, ["a film[SEP]"], 8)[0][-1] == plain[-1]


@pytest.fixture(scope="module")
def papers_judge():
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    made = word_pieces()
    made.add_special_tokens(["[CLS]", "[SEP]"])
    ends = [(token, made.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made, cls_token="[CLS]", sep_token="[SEP]", unk_token="<unk>")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", None], r"prompts\[1\] is None"),
        (["a", 3], r"prompts\[1\] is 3"),
        ([float("nan")], r"prompts\[0\] is nan"),
        ([b"a"], r"prompts\[0\] is b'a'"),
        (["a", ["b"]], r"prompts\[1\] is \['b'\]"),
        (np.array([["a", "b"]]), r"prompts\[0\] is array"),
        (["a", "b \ud83d"], r"prompts\[1\] is 'b \\ud83d'.*surrogate"),
        ("a", "prompts is 'a'"),
        (b"a", "prompts is b'a'"),
        (None, "prompts is None"),
        ((text for text in "ab"), "prompts is <generator"),
        ([], "prompts is .*at least one"),
        (["a", ""], r"prompts\[1\] is '', which has no tokens: give it at least one character"),
    ],
)
def test_what_is_no_prompt_is_named(prompts, message, language_model):
    tokenizer = wrapped(byte_level())
    with pytest.raises(ValueError, match=message) as raised:
        encode_prompts(tokenizer, 100, prompts, 8)
    assert "\n" not in str(raised.value)


def test_strings_of_numpy_and_columns_are_texts():
    import pandas as pd

    tokenizer = KINDS["byte_level"]
    plain = encode_prompts(tokenizer, 100, ["a b", "c"], 8)
    for texts in (np.array(["a b", "c"]), [np.str_("a b"), "c"], pd.Series(["a b", "c"], index=[7, 8]), ("a b", "c")):
        assert encode_prompts(tokenizer, 100, texts, 8) == plain


def test_messages_say_which_it_was():
    with pytest.raises(ValueError, match="the model has no tokenizer"):
        encode_prompts(None, 100, ["a"], 8)
    tokenizer = KINDS["byte_fallback"]
    with pytest.raises(ValueError, match=r"prompts\[0\].*has the token '</s>' \(2\), but the model knows only 2"):
        encode_prompts(tokenizer, 100, ["</s>"], 8, vocabulary=2)
    with pytest.raises(ValueError, match=r"prompts\[1\] .* has 9 tokens"):
        encode_prompts(KINDS["byte_level"], 16, ["a", "xxxxxxxx"], 8)


CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if tools %}[{{ tools | length }} tools]{% endif %}{% if slowly %}slowly{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def chatty():
    tokenizer = words_tokenizer("$A")
    tokenizer.chat_template = CHAT
    return tokenizer


def test_a_chat_may_have_a_system_message_turns_and_options(chatty):
    assert chat_prompt(chatty, "hi") == "<user>hi<assistant>"
    assert chat_prompt(chatty, "hi", system="be short") == "<system>be short<user>hi<assistant>"
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "b"},
    ]
    assert (
        chat_prompt(chatty, turns)
        == chat_prompt(chatty, ["hi", "yes", "b"])
        == "<user>hi<assistant>yes<user>b<assistant>"
    )
    assert chat_prompt(chatty, "hi", slowly=True) == "<user>hislowly<assistant>"
    assert chat_prompt(chatty, ["hi", "yes"], add_generation_prompt=False) == "<user>hi<assistant>yes"


@pytest.mark.parametrize(
    ("request_", "options", "message"),
    [
        ([], {}, "request is .*at least one"),
        (None, {}, "request is None"),
        ({"role": "user"}, {}, "request is {'role': 'user'}"),
        ([{"role": "user"}], {}, r"request\[0\] is {'role': 'user'}; a turn"),
        (["hi", {"role": "user", "content": "b"}], {}, r"request\[0\] is 'hi'; a turn"),
        ([{"role": "user", "content": None}], {}, r"request\[0\]'s role and content\[1\] is None"),
        (["hi", "yes"], {}, "the last turn of request is the assistant's"),
        ([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], {"system": "c"}, "system is given"),
        ("hi", {"quickly": True}, "option 'quickly' is unknown"),
        ("hi", {"system": 3}, r"system\[0\] is 3"),
    ],
)
def test_what_is_no_chat_is_named(chatty, request_, options, message):
    with pytest.raises(ValueError, match=message):
        chat_prompt(chatty, request_, **options)


def test_a_template_that_refuses_or_forgets_is_named(chatty):
    chatty.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(ValueError, match="refuses these turns: no system here"):
        chat_prompt(chatty, "hi", system="be short")
    chatty.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(ValueError, match="ignores the system message"):
        chat_prompt(chatty, "hi", system="be short")


def test_a_chat_begins_once():
    tokenizer = words_tokenizer("<bos> $A")
    text = chat_prompt(tokenizer, "hello")
    assert encode_prompts(tokenizer, 48, [text], 8) == [[0, 3, 4, 5]]


def test_a_prompt_does_not_end_before_its_response():
    tokenizer = words_tokenizer("$A <eos>")
    assert encode_prompts(tokenizer, 48, ["user hello"], 8) == [[3, 4]]


def test_a_model_without_a_chat_template_is_not_for_chats(language_model):
    with pytest.raises(ValueError, match="has no chat template"):
        chat_prompt(language_model.tokenizer, "hello")
