"""Tiny random models of every architecture that transformers has, with the plain pass that is their truth."""

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 99

# What a configuration is shrunk to: each architecture takes the names that it knows.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "sep_token_id": 2, "cls_token_id": 1, "mask_token_id": 3, "forced_eos_token_id": None, "type_vocab_size": 2,
    # sizes
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "emb_dim": 32, "embedding_size": 32,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4, "num_key_value_heads": 2,
    "num_kv_heads": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4, "head_dim": 8, "d_head": 8, "d_kv": 8, "dim_head": 8, "kv_channels": 8,
    "intermediate_size": 40, "ffn_dim": 40, "decoder_ffn_dim": 40, "encoder_ffn_dim": 40, "n_inner": 40, "dff": 40,
    "dim_ff": 40, "hidden_dim": 40, "d_inner": 40, "d_ff": 40, "ffn_hidden_size": 40, "shared_intermediate_size": 24,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2, "encoder_layers": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 2,
    # positions and windows
    "max_position_embeddings": 128, "n_positions": 128, "n_ctx": 128, "max_seq_len": 128, "context_length": 128,
    "max_target_positions": 128, "original_max_position_embeddings": 128, "sliding_window": 4,
    "sliding_window_size": 4, "attention_window_size": 4, "attention_chunk_size": 4, "window_size": 4,
    "local_attention": 8, "keep_window_size": 4, "max_window_layers": 1, "use_sliding_window": True, "rel_extent": 8,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_topk": 2, "moe_k": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_shared_experts": 1,
    "moe_num_shared_experts": 1, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24, "expert_ffn_hidden_size": 24, "zero_expert_num": 2, "num_mtp_layers": 0,
    # low ranks and the indexers of sparse attention
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_head_dim": 16, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "index_head_dim": 8, "index_n_heads": 16, "index_topk": 4, "num_nextn_predict_layers": 0,
    # layers with a state
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_n_groups": 1,
    "mamba_chunk_size": 8, "mamba_expand": 2, "mamba_dt_rank": 4, "mamba_num_heads": 8, "mamba_head_dim": 8,
    "state_size": 8, "ssm_state_size": 8, "time_step_rank": 4, "expand": 2, "n_groups": 1, "chunk_size": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_head_dim": 8, "linear_num_heads": 4,
    "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 99, "hidden_size_per_layer_input": 8, "laurel_rank": 8,
    "global_head_dim": 8, "router_hidden_size": 16, "hidden_size_global": 32,
    "encoder_hash_byte_group_vocab": 50,
    # pictures and sounds
    "image_size": 28, "patch_size": 14, "depth": 2, "out_hidden_size": 32, "num_mel_bins": 8,
    # weights large enough for attention to matter
    "initializer_range": 0.3, "init_std": 0.3, "initializer_std": 0.3,
}  # fmt: skip

# Where that is not enough, by `model_type`.
FULL, WINDOW, STATE = "full_attention", "sliding_attention", "linear_attention"
THREE_AXES = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "canine": {"num_hash_buckets": 64, "local_transformer_stride": 16},
    "esmc": {"num_key_value_heads": 4},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "lilt": {"hidden_size": 48},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 9, "entity_emb_size": 8},
    "perceiver": {
        "d_latents": 32, "num_latents": 8, "num_self_attends_per_block": 2, "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "t5": {"decoder_start_token_id": 0},
    "codegen": {"rotary_dim": 4},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "cohere_compass_text": {
        "logit_scale": 1.0, "layer_types": [WINDOW, FULL], "rope_parameters": {WINDOW: THREE_AXES, FULL: None},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}, "index_topk": 2,
    },
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 16},
    "dots1": {"layer_types": [WINDOW, FULL]},
    "gemma3n_text": {"intermediate_size": 40},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {"layer_types": [STATE, FULL]},
    "hrm_text": {"H_cycles": 1, "L_cycles": 1, "L_bp_cycles": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": {"layer_types": [WINDOW, FULL]},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", FULL]},
    "lfm2_moe": {"layer_types": ["conv", FULL], "num_dense_layers": 1},
    "llama4_text": {"num_hidden_layers": 2, "layer_types": ["chunked_attention", FULL], "no_rope_layers": [1, 0]},
    "mamba2": {"num_heads": 8},
    "minicpm3": {"dim_model_base": 32},
    "mellum": {"layer_types": [WINDOW, FULL]},
    "qwen2": {"layer_types": [WINDOW, FULL]},
    "qwen2_moe": {"layer_types": [WINDOW, FULL]},
    "qwen3": {"layer_types": [WINDOW, FULL]},
    "qwen4_exp_text": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
        "indexer_compress_ratio": 2, "hc_count": 2, "hc_lowrank": 8,
        "rope_parameters": THREE_AXES | {"partial_rotary_factor": 1.0},
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "w_init_variance_scale": 2.0},
    "rembert": {"input_embedding_size": 32, "output_embedding_size": 32},
    "reformer": {
        "axial_pos_shape": (8, 16), "axial_pos_embds_dim": (16, 16), "local_attn_chunk_length": 4,
        "attn_layers": ["local", "local"], "attention_head_size": 8, "feed_forward_size": 40,
    },
    "roc_bert": {"pronunciation_vocab_size": 9, "shape_vocab_size": 9, "pronunciation_embed_dim": 8,
                 "shape_embed_dim": 8},
    "xlstm": {"hidden_size": 128, "num_blocks": 2},
    "youtu": {"embedding_initializer_range": 0.3},
    "xlm": {"causal": True, "embed_init_std": 0.3},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": [STATE, "hybrid", STATE, "hybrid"]},
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"]},
}  # fmt: skip

# Their code asks for float32 in places, and raises in double precision.
FLOAT32_ONLY = {"canine", "inkling2_text", "mra", "xglm"}

# No plain pass over a text, or none here: they want another model's states, sounds, a package, or look ahead.
NOT_CAUSAL = {
    "emu3": "AutoModelForCausalLM cannot open the folder of its text model",
    "mllama": "AutoModelForCausalLM cannot open the folder of its text model",
    "blt": "cuts its bytes into patches by a model of its own",
    "cpmant": "its learnt prompt sees the whole text",
    "gemma3n": "needs timm",
    "gemma4_assistant": "reads the states of the model that it assists",
    "gemma4_unified_assistant": "reads the states of the model that it assists",
    "musicgen": "writes sounds",
    "musicgen_melody": "writes sounds",
    "xlnet": "every place sees every other",
} | dict.fromkeys(
    [
        "dots3_note", "fuyu", "gemma3", "gemma4", "gemma4_unified", "git", "got_ocr2", "moss_transcribe_diarize",
        "phi4_multimodal",
    ],
    "several modes",
)  # fmt: skip

# Classifiers only.
CLASSIFIER_OVERRIDES: dict[str, dict[str, Any]] = {"xlm": {"causal": False}}
NOT_CLASSIFIERS = {"layoutlmv2": "needs detectron2", "layoutlmv3": "reads pictures"}

# Further models of a type: name → (type, overrides).
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def _longrope(original: int) -> dict[str, Any]:
    """Return the settings of a model whose positions change once a text is longer than `original` tokens."""
    positions = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    return {
        "rope_parameters": positions | {"original_max_position_embeddings": original},
        "original_max_position_embeddings": original, "sliding_window": None,
    }  # fmt: skip


CAUSAL_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon-alibi": ("falcon", {"alibi": True}),
    "falcon-new-decoder": ("falcon", {"new_decoder_architecture": True}),
    "gpt2-scaled": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "gpt_bigcode-heads": ("gpt_bigcode", {"multi_query": False}),
    "granitemoehybrid-positions": ("granitemoehybrid", {"position_embedding_type": "rope"}),
    "llama-dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 8}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "mixtral-full": ("mixtral", {"sliding_window": None}),
    "opt-post-norm": ("opt", {"do_layer_norm_before": False}),
    "phi3-full": ("phi3", {"sliding_window": None}),
    "phi3-longrope": ("phi3", _longrope(64)),
    "phi3-longrope-crossed": ("phi3", _longrope(8)),
    "phimoe-full": ("phimoe", {"sliding_window": None}),
    "qwen2-full": ("qwen2", {"layer_types": [FULL, FULL]}),
    "qwen3-full": ("qwen3", {"layer_types": [FULL, FULL]}),
    "qwen3_moe-full": ("qwen3_moe", {"sliding_window": None, "use_sliding_window": False}),
    "starcoder2-full": ("starcoder2", {"sliding_window": None}),
}

SENTENCES = [
    "the film was good and the end was sad.",
    "a bad film, a very bad film indeed!",
    "I saw this with my mother and we laughed.",
    "nobody knew.\nnobody knows why this was made, or for whom?",
    "The queen's quick zebra just vexed 10 of my black foxes; they hid in the park.",
]


def small_config(model_type: str, **overrides: Any) -> Any:
    """Return the configuration of `model_type`, shrunk, with every kind of layer that the full one has."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    return kind(**_small_settings(kind, kind()) | overrides)


def _small_settings(kind: Any, full: Any) -> dict[str, Any]:
    known = [field.name for field in dataclasses.fields(kind)]
    parts = {name: vars(full).get(name) for name in kind.sub_configs if vars(full).get(name) is not None}
    latent = {"num_key_value_heads": 4} if "kv_lora_rank" in known else {}  # DeepSeek's attention shares no heads
    return (
        {name: SMALL[name] for name in known if name in SMALL}
        | latent
        | _one_layer_of_each_kind(full, known)
        | {name: type(part)(**_small_settings(type(part), part)) for name, part in parts.items()}
        | OVERRIDES.get(kind.model_type, {})
    )


def _one_layer_of_each_kind(full: Any, known: list[str]) -> dict[str, Any]:
    """Return the per-layer lists of the full configuration, cut to the first layer of each kind, at least two."""
    values = vars(full)
    count = values.get("num_hidden_layers")
    lists = {name: values.get(name) for name in known}
    lists = {name: layers for name, layers in lists.items() if isinstance(layers, list) and len(layers) == count}
    if not lists:
        return {}
    kinds = [tuple(map(str, layer)) for layer in zip(*lists.values(), strict=True)]
    first = sorted({kinds.index(layer) for layer in kinds})
    chosen = first if len(first) > 1 else [0, 1]
    return {"num_hidden_layers": len(chosen)} | {name: [layers[i] for i in chosen] for name, layers in lists.items()}


def build(auto: str, config: Any) -> Any:
    """Return the model of `config` with seeded weights, for evaluation, by the class `auto` of transformers."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config, dtype=torch.float32).eval()
    for weight in model.parameters():  # some begin at zero or 0.02, whatever the configuration says
        if weight.ndim > 1 and weight.std() < 0.1:
            weight.data += 0.3 * torch.randn_like(weight)
    return model


def causal(model_type: str, **overrides: Any) -> Any:
    """Return a tiny causal language model."""
    from transformers import CONFIG_MAPPING

    known = {field.name for field in dataclasses.fields(CONFIG_MAPPING[model_type])}
    decoder = {"is_decoder": True} if "is_decoder" in known else {}
    config = small_config(model_type, **decoder | overrides)
    return build("AutoModelForCausalLM", config)


def _causal_models() -> dict[str, Callable[[], Any]]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    types = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in NOT_CAUSAL]
    return {name: functools.partial(causal, name) for name in types} | {
        name: functools.partial(causal, kind, **overrides) for name, (kind, overrides) in CAUSAL_VARIANTS.items()
    }


CAUSAL = _causal_models()

# What a place sees hangs on the length of the whole text: a token drawn after one text has another probability when
# the finished text is read, so that nothing but a refusal is right.
LENGTH_DEPENDENT = {"llama-dynamic", "phi3-longrope-crossed", "prophetnet"}

# One of each kind of trouble: own attention, windows, states, no cache, no positions.
QUICK_CAUSAL = [
    "afmoe", "bloom", "falcon-alibi", "falcon_h1", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_oss", "gptj",
    "granitemoehybrid", "jamba", "lfm2", "llama", "mamba", "mistral", "openai-gpt", "qwen3_5_text", "rwkv", "xglm",
]  # fmt: skip
CORE_CAUSAL = [
    *QUICK_CAUSAL,
    "bamba", "bart", "bert", "biogpt", "codegen", "cohere2", "ctrl", "dbrx", "deepseek_v3", "doge", "exaone4",
    "falcon", "falcon_mamba", "gemma", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "granite_swa",
    "kimi_linear", "llama-yarn", "llama4_text", "mamba2", "mimo_v2_flash", "minimax",
    "ministral", "mixtral", "mpt", "nemotron_h", "olmo2", "olmo3", "olmo_hybrid", "opt", "phi", "phi3",
    "phi3-longrope", "phimoe", "qwen2", "qwen3", "qwen3_next", "recurrent_gemma", "roberta", "stablelm",
    "starcoder2", "xlstm", "zamba2",
]  # fmt: skip


def classifier(model_type: str, num_labels: int = 1, **overrides: Any) -> Any:
    """Return a tiny sequence classifier with `num_labels` outputs."""
    config = small_config(model_type, num_labels=num_labels, **CLASSIFIER_OVERRIDES.get(model_type, {}) | overrides)
    return build("AutoModelForSequenceClassification", config)


def _classifiers() -> dict[str, Callable[..., Any]]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    types = [name for name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if name not in NOT_CLASSIFIERS]
    return {name: functools.partial(classifier, name) for name in types}


CLASSIFIERS = _classifiers()
QUICK_CLASSIFIERS = [
    "bert", "deberta-v2", "distilbert", "fnet", "gpt_neo", "gpt2", "longformer", "modernbert", "qwen3_5_text",
    "roberta",
]  # fmt: skip
CORE_CLASSIFIERS = [
    *QUICK_CLASSIFIERS,
    "albert", "big_bird", "bloom", "convbert", "deberta", "electra", "esm", "falcon", "funnel", "gemma2", "gptj",
    "jamba", "llama", "mistral", "mpnet", "nystromformer", "openai-gpt", "opt", "perceiver", "qwen3", "reformer",
    "rembert", "roformer", "squeezebert", "xlm-roberta", "xlnet", "yoso",
]  # fmt: skip


def tokenizer(vocabulary: int = VOCABULARY, *, closed: bool = False) -> Any:
    """Return a BPE tokenizer of `vocabulary` tokens: 0 pads, 1 begins every text, 2 ends it.

    Args:
        vocabulary: how many tokens, the special ones among them.
        closed: end every text with the end token, as encoders want it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    bpe.decoder = decoders.Metaspace(prepend_scheme="never")
    special = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
    bpe.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    )
    end = " </s>" if closed else ""
    bpe.post_processor = processors.TemplateProcessing(f"<s> $A{end}", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=128, clean_up_tokenization_spaces=False,
    )  # fmt: skip


@torch.no_grad()
def plain_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """Return the truth: the logits of one text, `(T, V)`, in double precision, without cache, padding or mask."""
    exact = in_double(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits = exact(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    return logits[-len(ids) :]  # less the learnt prompt's, where an adapter has one


@torch.no_grad()
def plain_scores(model: Any, ids: list[int]) -> torch.Tensor:
    """Return the truth of a classifier: the outputs for one text, `(num_labels,)`, as `plain_logits` does."""
    exact = in_double(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exact(input_ids=torch.tensor([ids])).logits[0].double()


def in_double(model: Any) -> Any:
    precision = torch.float32 if model.config.model_type in FLOAT32_ONLY else torch.float64
    exact = copy.deepcopy(model).to(precision).eval()
    exact.set_experts_implementation("eager")  # grouped products know no double precision
    return exact


def save(model: Any, folder: Path, *, closed: bool = False) -> Path:
    """Write the folder of `model`, with the tokenizer of `closed`, and return it."""
    model.save_pretrained(folder)
    tokenizer(closed=closed).save_pretrained(folder)
    return folder


def _save_as(name: str, model_type: str, folder: Path, **overrides: Any) -> Path:
    import transformers

    torch.manual_seed(0)
    return save(getattr(transformers, name)(small_config(model_type, **overrides)), folder)


def _save_without(model: Any, weight: str, folder: Path) -> Path:
    save(model, folder)
    weights = model.state_dict()
    model.save_pretrained(folder, state_dict={name: weights[name] for name in weights if name != weight})
    return folder


# What cannot draw texts: name → function of a folder that writes the model there.
REFUSED: dict[str, Callable[[Path], Path]] = {
    name: functools.partial(_save_as, kind, model_type, **overrides)
    for name, (kind, model_type, overrides) in {
        # both sides of a gap
        "albert": ("AlbertForMaskedLM", "albert", {}),
        "bert": ("BertForMaskedLM", "bert", {}),
        "bert-both-ways": ("BertLMHeadModel", "bert", {"is_decoder": False}),
        "cpmant": ("CpmAntForCausalLM", "cpmant", {}),
        "deberta-v2": ("DebertaV2ForMaskedLM", "deberta-v2", {}),
        "distilbert": ("DistilBertForMaskedLM", "distilbert", {}),
        "electra-both-ways": ("ElectraForCausalLM", "electra", {"is_decoder": False}),
        "gemma3_text-both-ways": ("Gemma3ForCausalLM", "gemma3_text", {"use_bidirectional_attention": True}),
        "modernbert": ("ModernBertForMaskedLM", "modernbert", {}),
        "roberta": ("RobertaForMaskedLM", "roberta", {}),
        "roberta-both-ways": ("RobertaForCausalLM", "roberta", {"is_decoder": False}),
        "xlm-both-ways": ("XLMWithLMHeadModel", "xlm", {"causal": False}),
        "xlnet": ("XLNetLMHeadModel", "xlnet", {}),
        # an encoder's output
        "bart": ("BartForConditionalGeneration", "bart", {}),
        "blenderbot": ("BlenderbotForConditionalGeneration", "blenderbot", {}),
        "m2m_100": ("M2M100ForConditionalGeneration", "m2m_100", {}),
        "marian": ("MarianMTModel", "marian", {}),
        "mt5": ("MT5ForConditionalGeneration", "mt5", {}),
        "pegasus": ("PegasusForConditionalGeneration", "pegasus", {}),
        "t5": ("T5ForConditionalGeneration", "t5", {}),
        "whisper": ("WhisperForConditionalGeneration", "whisper", {}),
        # pictures and sounds
        "clip": ("CLIPModel", "clip", {}),
        "gemma3": ("Gemma3ForConditionalGeneration", "gemma3", {}),
        "llava": ("LlavaForConditionalGeneration", "llava", {}),
        "vit": ("ViTForImageClassification", "vit", {}),
        # no head for words
        "gpt2-classifier": ("GPT2ForSequenceClassification", "gpt2", {}),
        "llama-body": ("LlamaModel", "llama", {}),
    }.items()
} | {"llama-weight-missing": lambda folder: _save_without(causal("llama"), "model.layers.1.mlp.up_proj.weight", folder)}

# What cannot judge texts, likewise.
REFUSED_CLASSIFIERS: dict[str, Callable[[Path], Path]] = {
    "bert-masked": REFUSED["bert"],
    "bert-weight-missing": lambda folder: _save_without(
        classifier("bert"), "bert.encoder.layer.1.output.dense.weight", folder
    ),
    "gpt2-untrained": lambda folder: save(causal("gpt2"), folder),
    "llama-untrained": lambda folder: save(causal("llama"), folder),
    "vit": REFUSED["vit"],
}


def _adapted(method: str, base: Any, **settings: Any) -> Any:
    """Return `base` with an adapter of peft, whose weights are random (LoRA's begin as no change)."""
    import peft

    judge = type(base).__name__.endswith("SequenceClassification")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(peft, method)(task_type="SEQ_CLS" if judge else "CAUSAL_LM", **settings)
        model = peft.get_peft_model(base, config)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.2 * torch.randn_like(weight)
    return model.eval()


def _products(base: Any) -> list[str]:
    """Return the names of the linear layers of the body, less its heads and what peft cannot adapt."""
    from transformers.pytorch_utils import Conv1D

    prefix = base.base_model_prefix if hasattr(base, base.base_model_prefix) else "model"
    layers = getattr(base, prefix).named_modules()
    names = [f"{prefix}.{name}" for name, layer in layers if isinstance(layer, torch.nn.Linear | Conv1D)]
    return [name for name in names if not name.endswith(("mixer.out_proj", "mamba.out_proj", ".router"))]


def _head(base: Any) -> str:
    return next(name for name, layer in base.named_modules() if layer is base.get_output_embeddings())


def _prompt(method: str, base: Any, **settings: Any) -> Any:
    width = base.get_input_embeddings().embedding_dim
    sizes = {"num_virtual_tokens": 3, "token_dim": width, "num_layers": 2, "num_attention_heads": 4}
    return _adapted(method, base, **sizes, **settings)


def _lora(base: Any, **settings: Any) -> Any:
    return _adapted("LoraConfig", base, r=4, lora_alpha=8, target_modules=_products(base), **settings)


def _ia3(base: Any) -> Any:
    names = _products(base)
    back = {"down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "lin2"}  # IA³ scales what these read
    feedforward = [name for name in names if name.rsplit(".", 1)[-1] in back]
    return _adapted("IA3Config", base, target_modules=names, feedforward_modules=feedforward)


# Name → function of a model that puts the adapter on. Those that learn a prompt are for language models.
ADAPTERS: dict[str, Callable[[Any], Any]] = {
    "adalora": lambda base: _adapted(
        "AdaLoraConfig", base, init_r=4, total_step=10, lora_alpha=8, target_modules=_products(base)
    ),
    "dora": lambda base: _lora(base, use_dora=True),
    "ia3": _ia3,
    "lora": _lora,
    "lora-head": lambda base: _lora(base, modules_to_save=[_head(base)]),
    "lora-tokens": lambda base: _lora(base, trainable_token_indices=[7, 8]),
    "p-tuning": lambda base: _prompt("PromptEncoderConfig", base, encoder_hidden_size=16),
    "prefix": lambda base: _adapted("PrefixTuningConfig", base, num_virtual_tokens=3),
    "prompt": lambda base: _prompt("PromptTuningConfig", base),
    "rslora": lambda base: _lora(base, use_rslora=True),
    "tokens": lambda base: _adapted("TrainableTokensConfig", base, token_indices=[7, 8]),
    "vera": lambda base: _adapted("VeraConfig", base, r=4, target_modules=_products(base)),
}
