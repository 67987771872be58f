"""Answers that must follow a grammar (JSON, a JSON schema, a tool call): which tokens may come next.

llguidance does the parsing; here its masks become MLX arrays. On rank 0 only, like all choosing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import mlx.core as mx
import numpy as np

from jaccl_kernel.server.generation import ServerError


class Grammars:
    """Makes matchers for one tokenizer; made in some tenths of a second, so before anyone asks.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        vocabulary: the width of the logits, which can be more than the tokenizer's tokens.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._eos = sorted(tokenizer.eos_token_ids)
        self._tokenizer: Any = None
        self._complaint = ""
        try:
            self._tokenizer = llguidance.hf.from_tokenizer(
                tokenizer._tokenizer, n_vocab=vocabulary, eos_token=self._eos
            )
        except Exception as error:  # an odd tokenizer serves all requests but those with a grammar
            self._complaint = f"{type(error).__name__}: {error}"

    def mask(self, grammar: str) -> Callable[[Sequence[int]], mx.array | None]:
        """A fresh matcher: given the tokens since its last call, which may come next (boolean, vocabulary).

        Raises:
            ServerError: 400, the grammar makes no sense, or this tokenizer takes none.
        """
        complaint = self._complaint
        if not complaint:
            try:
                matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
                complaint = matcher.get_error() if matcher.is_error() else ""
            except Exception as error:  # what a client sends must not end the engine
                complaint = f"{type(error).__name__}: {error}"
        if complaint:
            raise ServerError(400, f"the grammar cannot be used: {complaint}", param="response_format")
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
        # an error here is a limit of the parser on an odd grammar: what is there ends, rather than run wild
        if self._matcher.is_stopped() or self._matcher.is_error():
            return self._end
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._words)
        bits = np.unpackbits(self._words[0].view(np.uint8), bitorder="little")[: self._vocabulary]
        return mx.array(bits.astype(bool))
