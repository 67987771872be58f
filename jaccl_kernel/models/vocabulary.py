"""Converts the tokenizer in a GGUF to files for transformers: byte-level BPE with single digits.

Uses only the metadata (transformers' GGUF reader needs torch). Imports the `tokenizers` library, so only the
child process of `convert.py` uses this module.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from jaccl_kernel.core.errors import ModelError

CONTROL = 3  # GGUF's token type of special tokens such as <|im_end|> (llama.cpp: enum llama_token_type)
# Pre-tokenizers (`tokenizer.ggml.pre`) that split digits one by one, then words as GPT-2 does (llama.cpp:
# llama-vocab.cpp)
KNOWN_SPLITS = ("smollm",)


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary with its special tokens and chat template."""

    tokens: tuple[str, ...]  # by id, bytes written as GPT-2's printable characters
    merges: tuple[tuple[str, str], ...]  # by priority
    special: tuple[int, ...]  # ids that plain text never produces
    bos: int
    eos: int
    pad: int
    unknown: int
    chat_template: str | None

    @classmethod
    def from_gguf(cls, metadata: dict[str, Any]) -> "Vocabulary":
        """Read `tokenizer.*` (plain Python values); raise ModelError for another kind or a missing value."""

        def value(key: str) -> Any:
            try:
                return metadata[f"tokenizer.ggml.{key}"]
            except KeyError:
                raise ModelError(f"tokenizer.ggml.{key} is missing in the GGUF file") from None

        if (kind := value("model")) != "gpt2" or value("pre") not in KNOWN_SPLITS:
            raise ModelError(
                f"unsupported GGUF tokenizer {kind!r} with the split {value('pre')!r}; only 'gpt2' with "
                f"{' or '.join(map(repr, KNOWN_SPLITS))} is supported"
            )
        return cls(
            tokens=tuple(value("tokens")),
            merges=tuple(_pair(merge) for merge in value("merges")),
            special=tuple(i for i, kind in enumerate(value("token_type")) if kind == CONTROL),
            bos=value("bos_token_id"),
            eos=value("eos_token_id"),
            pad=value("padding_token_id"),
            unknown=value("unknown_token_id"),
            chat_template=metadata.get("tokenizer.chat_template"),
        )


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def build(vocabulary: Vocabulary) -> Tokenizer:
    """Build the tokenizer. Like SmolLM2's own, it drops bytes that the vocabulary lacks (control bytes)."""
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: number for number, token in enumerate(vocabulary.tokens)},
            merges=list(vocabulary.merges),
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(vocabulary.tokens[number], special=True, normalized=False)
            for number in vocabulary.special
        ]
    )
    return tokenizer


def write_tokenizer(folder: Path, vocabulary: Vocabulary, *, context: int) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` (with the chat template)."""
    build(vocabulary).save(str(folder / "tokenizer.json"))
    config = {
        # the plain class, since transformers' GPT2Tokenizer has its own split, which keeps digits together
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": vocabulary.tokens[vocabulary.bos],
        "eos_token": vocabulary.tokens[vocabulary.eos],
        "pad_token": vocabulary.tokens[vocabulary.pad],
        "unk_token": vocabulary.tokens[vocabulary.unknown],
        "additional_special_tokens": [vocabulary.tokens[number] for number in vocabulary.special],
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": vocabulary.chat_template,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
