"""The table of what the library does with a model."""

import zoo

from bonlib.models.explain import explain
from bonlib.models.loaded import LoadedModel


def test_explain_is_a_table_of_ways():
    mamba = LoadedModel(zoo.CAUSAL["mamba"]().requires_grad_(False), zoo.tokenizer(), "tiny")
    lines = explain(mamba).splitlines()
    assert lines[0] == "tiny: MambaForCausalLM, float32, cpu"
    assert lines[1].split() == ["way", "drawing", "responses", "what", "it", "is"]
    marks = {line.split("  ")[0].strip(): line for line in lines[2:]}
    assert "left out" in marks["left"]
    assert "yes" in marks["cache"]
    judge = LoadedModel(zoo.CLASSIFIERS["bert"](), zoo.tokenizer(), "judge")
    assert "judging" in explain(judge).splitlines()[1]
    assert "pooled" in explain(judge)  # it is one of judging's ways, but not one for this model
    assert "left out" not in explain(judge)
