"""The tokenizer that is built of a GGUF."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.core.errors import ModelError
from jaccl_kernel.models.vocabulary import Vocabulary, build, write_tokenizer

LETTERS = "Ġabcdefghijklmnopqrstuvwxyz0123456789"
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he", "1 2", "a b")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def metadata(**changes: Any) -> dict[str, Any]:
    tokens = [*SPECIAL, *LETTERS, *("".join(merge.split(" ")) for merge in MERGES)]
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "merges": list(MERGES),
        "token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 2,
        "unknown_token_id": 0,
    } | changes
    named = {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}
    return named | {"tokenizer.chat_template": "{{ messages }}"}


def pieces(text: str) -> list[str]:
    return list(build(Vocabulary.from_gguf(metadata())).encode(text).tokens)


def test_merges_are_applied_in_their_order() -> None:
    assert pieces("hello the") == ["hello", "Ġthe"]


def test_digits_stay_one_by_one_though_a_merge_would_join_them() -> None:
    assert pieces("a12b") == ["a", "1", "2", "b"]
    assert pieces("ab") == ["ab"]


def test_special_tokens_are_one_token_and_never_made_of_plain_pieces() -> None:
    tokenizer = build(Vocabulary.from_gguf(metadata()))
    assert tokenizer.encode("<|im_start|>hello<|im_end|>").ids == [1, tokenizer.token_to_id("hello"), 2]
    assert tokenizer.decode([1, tokenizer.token_to_id("hello"), 2]) == "hello"
    assert tokenizer.decode([1, 2], skip_special_tokens=False) == "<|im_start|><|im_end|>"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "llama"}, "tokenizer 'llama'"),
        ({"pre": "qwen2"}, "split 'qwen2'"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Vocabulary.from_gguf(metadata(**changes))


def test_the_files_are_those_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path, Vocabulary.from_gguf(metadata()), context=77)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 77
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a12b the")) == ["a", "1", "2", "b", "Ġthe"]
    assert tokenizer.apply_chat_template([{"role": "user"}], tokenize=False) == "[{'role': 'user'}]"


@pytest.fixture(scope="module")
def real(demo_model: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(demo_model / "tokenizer.json"))


@pytest.mark.demo
def test_the_demos_ids_are_smollm2s(real: Any) -> None:
    prompt = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    assert real.encode(prompt).ids == [
        1,
        9690,
        198,
        2683,
        359,
        253,
        5356,
        5646,
        11173,
        3365,
        3511,
        308,
        34519,
    ]
    assert real.encode("2026-11").tokens == ["2", "0", "2", "6", "-", "1", "1"]
    assert real.encode(" the capital").tokens == ["Ġthe", "Ġcapital"]


@pytest.mark.demo
@pytest.mark.parametrize(
    "text",
    [
        "Grüße aus München, naïve café – “quotes”…",
        "日本語とカタカナ 한국어 русский عربى",
        "👩‍👩‍👧‍👦 emoji 🚀🇨🇭",
        "def f(x):\n\treturn x ** 2  # 3.14159\n\n\n    pass",
        "  leading, trailing and    inner spaces   ",
        "1234567890 9.99e-7 0xFF",
        "line\r\nend\r\n",
    ],
)
def test_the_demo_gives_back_every_text(real: Any, text: str) -> None:
    assert real.decode(real.encode(text).ids) == text


@pytest.mark.demo
@given(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Co", "Cn"), max_codepoint=0xFFFF))
)
def test_the_demo_gives_back_any_printable_text(real: Any, text: str) -> None:
    assert real.decode(real.encode(text).ids, skip_special_tokens=False) == text
