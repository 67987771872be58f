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
    """Makes matchers for one tokenizer.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        vocabulary: the width of the logits, which can be more than the tokenizer's tokens.
    """

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._eos = sorted(tokenizer.eos_token_ids)
        self._tokenizer = tokenizer
        self._compiled: Any = None

    def mask(self, grammar: str) -> Callable[[Sequence[int]], mx.array | None]:
        """A fresh matcher: given the tokens since its last call, which may come next (boolean, vocabulary).

        Raises:
            ServerError: 400, the grammar makes no sense.
        """
        if self._compiled is None:  # some tenths of a second, for the first who asks
            self._compiled = llguidance.hf.from_tokenizer(
                self._tokenizer._tokenizer, n_vocab=self._vocabulary, eos_token=self._eos
            )
        matcher = llguidance.LLMatcher(self._compiled, grammar, log_level=0)
        if matcher.is_error():
            raise ServerError(
                400, f"the grammar cannot be used: {matcher.get_error()}", param="response_format"
            )
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
