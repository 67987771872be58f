"""What batch.py takes for granted of mlx-lm's BatchGenerator; fails when upstream changes under us."""

import importlib
import inspect
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import pytest

from jaccl_kernel.inference.batch import Batch, token_bytes
from jaccl_kernel.inference.request import Sampling
from jaccl_kernel.inference.sampling import Row, Sampler
from jaccl_kernel.ranks.loader import load

upstream = importlib.import_module("mlx_lm.generate")


def batch(path: Path, rows: int, prefill_step: int = 32) -> tuple[Batch, Sampler]:
    model, tokenizer = load(path)
    sampler = Sampler()
    sampler.rows |= {row: Row(Sampling(temperature=0.0)) for row in range(rows)}
    return Batch(model, sampler, sorted(tokenizer.eos_token_ids), prefill_step=prefill_step), sampler


def finish(one: Batch) -> dict[int, list[int]]:
    """Step until all have ended; the tokens of each."""
    tokens: dict[int, list[int]] = {}
    while len(one):
        for token in one.step():
            tokens.setdefault(token.sequence, []).append(token.id)
    return tokens


def alone(path: Path, prompt: list[int], count: int) -> list[int]:
    """The greedy tokens of mlx-lm's own single generation."""
    model, tokenizer = load(path)
    tokens = []
    for token, _ in upstream.generate_step(mx.array(prompt), model, max_tokens=count):
        tokens.append(int(token))
        if tokens[-1] in tokenizer.eos_token_ids:
            break
    return tokens


def test_the_version_is_the_one_that_was_read() -> None:
    assert version("mlx-lm").startswith("0.32.")


def test_the_step_that_is_replaced_still_does_what_ours_does() -> None:
    [base] = upstream.GenerationBatch.__mro__[1:2]
    assert base.__module__ == "mlx_lm.generate"
    source = inspect.getsource(base._step)
    for piece in (
        "self.model(inputs[:, None], cache=self.prompt_cache)",
        "logits[:, -1, :]",
        "self._next_tokens = sampled",
        "sti.append(ti)",
        "return inputs, self._current_logprobs",
    ):
        assert piece in source
    assert "GenerationBatch(" in inspect.getsource(upstream.PromptProcessingBatch.generate)
    assert "self.sampler" in inspect.getsource(upstream.BatchGenerator._make_batch)


def test_a_batch_generates_the_same_tokens_as_each_sequence_alone(tiny_model: Path) -> None:
    prompts = [[5, 6, 7], [9] * 100, [1, 2, 3, 4] * 20, [40]]
    one, _ = batch(tiny_model, len(prompts))
    for number, prompt in enumerate(prompts):
        one.add(number, prompt, 12)
    together = finish(one)
    assert [together[number] for number in range(len(prompts))] == [
        alone(tiny_model, prompt, 12) for prompt in prompts
    ]


def test_a_sequence_that_joins_late_or_leaves_early_changes_no_other(tiny_model: Path) -> None:
    one, _ = batch(tiny_model, 3)
    one.add(0, [5, 6, 7], 30)
    one.add(1, [8] * 90, 30)
    first = [token for _ in range(6) for token in one.step()]
    one.remove(1)
    one.add(2, [9, 10], 10)
    rest = finish(one)
    mine = [token.id for token in first if token.sequence == 0] + rest[0]
    assert mine == alone(tiny_model, [5, 6, 7], 30)
    assert rest[2] == alone(tiny_model, [9, 10], 10)
    assert 1 not in rest


def test_a_cached_prompt_has_its_tokens_and_serves_a_prefix(tiny_model: Path) -> None:
    one, sampler = batch(tiny_model, 2)
    prompt = list(range(60, 100))
    one.add(0, prompt, 8)
    generated = finish(one)[0]
    held = one.ended[0]
    assert held.tokens == [*prompt, *generated]
    assert held.trimmable
    assert token_bytes(held) == 2 * 2 * 4 * 16 * 4  # layers, k and v, heads, head_dim, float32
    sampler.rows[1] = Row(Sampling(temperature=0.0))
    longer = [*prompt[:30], 7, 8, 9]
    one.add(1, longer[30:], 8, known=longer[:30], cache=held.copied(len(held) - 30))
    assert finish(one)[1] == alone(tiny_model, longer, 8)
    assert held.tokens == [*prompt, *generated]  # what is kept is not what was used


def test_a_removed_sequence_keeps_its_cache(tiny_model: Path) -> None:
    one, _ = batch(tiny_model, 1)
    one.add(0, [9] * 100, 50)
    tokens = [token.id for _ in range(9) for token in one.step()]
    one.remove(0)
    held = one.ended[0]
    assert held.tokens[:100] == [9] * 100
    assert held.tokens[100 : 100 + len(tokens)] == tokens
    assert held.cache[0].offset == len(held.tokens)


def test_a_boundary_keeps_a_copy_of_the_cache(tiny_model: Path) -> None:
    one, _ = batch(tiny_model, 1)
    one.add(0, [9] * 70, 4, boundary=50)
    seen: dict[int, list[int]] = {}
    while len(one):
        one.step()
        seen |= {number: held.tokens for number, held in one.at_boundary.items()}
    assert seen == {0: [9] * 50}


@pytest.mark.parametrize("prompt", [[5], [5, 6], [7] * 31, [7] * 32, [7] * 33, [7] * 64, [7] * 65])
def test_every_length_around_a_chunk_is_right(tiny_model: Path, prompt: list[int]) -> None:
    one, _ = batch(tiny_model, 1)
    one.add(0, prompt, 5)
    assert finish(one)[0] == alone(tiny_model, prompt, 5)
