"""A long prompt with one fact in it, and a question about it: tests attention to distant tokens."""

from typing import Any

from jaccl_kernel.ranks.bench import PASSAGE

DEPTH = 0.4  # position of the fact in the text, 0..1
NUMBER = "74291"
FACT = f"The number on the blue door is {NUMBER}. "
QUESTION = "What is the number on the blue door? Answer with the number."
ANSWER_TOKENS = 24


def request(tokenizer: Any, tokens: int) -> tuple[dict[str, Any], str]:
    """A greedy OpenAI request of about `tokens` prompt tokens, and the text that the answer must contain."""
    one = len(tokenizer.encode(PASSAGE))
    count = max(1, (tokens - len(tokenizer.encode(FACT + QUESTION))) // one)
    before = int(count * DEPTH)
    text = PASSAGE * before + FACT + PASSAGE * (count - before)
    body: dict[str, Any] = {"max_tokens": ANSWER_TOKENS, "temperature": 0}
    if tokenizer.chat_template is not None or tokenizer.has_chat_template:
        return body | {"messages": [{"role": "user", "content": f"{text}\n\n{QUESTION}"}]}, NUMBER
    return body | {"prompt": f"{text}\n\n{QUESTION}\nThe number on the blue door is"}, NUMBER
