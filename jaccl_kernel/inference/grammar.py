"""Masks of the next token for answers that must follow a grammar (JSON, a JSON schema, a tool call).

llguidance parses; this module converts its masks to MLX arrays. On rank 0 only, like all sampling.
"""

from collections.abc import Callable, Sequence
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import mlx.core as mx
import numpy as np

from jaccl_kernel.inference.request import RequestError


class Grammars:
    """Creates matchers for one tokenizer; its constructor takes tenths of a second.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        vocabulary: the width of the logits, which can exceed the tokenizer's vocabulary.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._eos = sorted(tokenizer.eos_token_ids)
        self._tokenizer: Any = None
        self._error = ""
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(
                tokenizer._tokenizer, n_vocab=vocabulary, eos_token=self._eos
            )
        except Exception as error:  # such a tokenizer still serves requests without a grammar
            self._error = f"{type(error).__name__}: {error}"

    def mask(self, grammar: str) -> Callable[[Sequence[int]], mx.array | None]:
        """Return a matcher: it maps the tokens since its last call to the allowed next ones, as booleans.

        Raises:
            RequestError: the grammar is invalid, or this tokenizer does not support grammars.
        """
        error_text = self._error
        if not error_text:
            try:
                matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
                error_text = matcher.get_error() if matcher.is_error() else ""
            except Exception as error:  # a client's grammar must not end the engine
                error_text = f"{type(error).__name__}: {error}"
        if error_text:
            raise RequestError("invalid", f"unsupported grammar: {error_text}", field="grammar")
        return _Matcher(matcher, self._eos, self._vocabulary)


class _Matcher:
    def __init__(self, matcher: Any, eos: Sequence[int], vocabulary: int) -> None:
        self._matcher = matcher
        self._end = mx.zeros((vocabulary,), dtype=mx.bool_)
        self._end[mx.array(list(eos))] = True
        self._words = llguidance.numpy.allocate_token_bitmask(1, vocabulary)
        self._vocabulary = vocabulary

    def __call__(self, tokens: Sequence[int]) -> mx.array | None:
        for token in tokens:
            self._matcher.consume_token(token)
        # an error here is a limit of the parser: end the answer
        if self._matcher.is_stopped() or self._matcher.is_error():
            return self._end
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._words)
        bits = np.unpackbits(self._words[0].view(np.uint8), bitorder="little")[: self._vocabulary]
        return mx.array(bits.astype(bool))
