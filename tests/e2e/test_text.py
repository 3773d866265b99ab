"""Text-only models use the same roads: a user's own method file, a tiny random Llama, pairs and training."""

import json
from pathlib import Path

from mmalign.cli import main
from mmalign.pairs import read_pairs
from tests.models import tiny_llama

METHOD = '''
"""Longer is better: a toy method in a user's own file."""
from dataclasses import dataclass

from mmalign import Pair, Sampling, method


@method("longer", media="text")
@dataclass(frozen=True, kw_only=True)
class Longer:
    """Prefer the longer of two answers."""

    samples: int = 3

    async def pairs(self, sample, lm, rng):
        sampling = Sampling(temperature=1.0, max_new_tokens=8)
        answers = await lm.generate_n(sample.ask(sample.prompt), self.samples, sampling)
        answers = sorted(answers, key=lambda answer: len(answer.text))
        yield Pair(sample.ask(sample.prompt), chosen=answers[-1], rejected=answers[0], source="length")
'''


def test_a_method_of_ones_own_on_a_text_model(tmp_path: Path) -> None:
    model, tokenizer = tiny_llama()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "longer.py").write_text(METHOD, encoding="utf-8")
    prompts = [{"prompt": f"Count to {number}."} for number in range(6)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        f"""
model: {{name: {tmp_path / "model"}}}
data: {{samples: {tmp_path / "prompts.jsonl"}}}
method: {{name: "{tmp_path / "longer.py"}:Longer"}}
objective: {{name: dpo, beta: 0.5}}
train: {{lora: {{rank: 4}}, batch_size: 4, learning_rate: 0.001}}
output: {tmp_path / "run"}
""",
        encoding="utf-8",
    )
    assert main(["run", str(tmp_path / "recipe.yaml")]) == 0
    pairs = read_pairs(tmp_path / "run" / "round-0" / "pairs.parquet")
    assert pairs
    assert all(len(pair.chosen) > len(pair.rejected) for pair in pairs)
    assert (tmp_path / "run" / "train" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
