"""A tokenizer with markers for reasoning and tool calls, and templates in the shape of model families."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CALL = '{"name": "weather", "arguments": {"city": "Zürich"}}'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALLED = f"<tool_call>{CALL}</tool_call>"
THOUGHT = f"<think>Need it.</think>\n\nLet me look.\n{CALLED}\n{CALLED}"
HI: Any = [{"role": "user", "content": "hi"}]
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TEMPLATE = (  # in the shape of Qwen3's: JSON calls, reasoning in its own markers
    "{% for tool in tools or [] %}<s>tool {{ tool.function.name }}</s>{% endfor %}"
    "{% for message in messages %}<s>{{ message['role'] }}: "
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message['content'] }}"
    "{% for tool_call in message.tool_calls or [] %}<tool_call>{{ tool_call.function.name }} "
    "{{ tool_call.function.arguments | tojson }}{# tool_call.name #}</tool_call>{% endfor %}"
    "</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
    "{% if enable_thinking and open_think %}<think>{% endif %}"
)


def make_tokenizer(
    tiny_model: Path, folder: Path, template: str = TEMPLATE, markers: Sequence[str] = MARKERS
) -> Any:
    """The tiny model's tokenizer with these markers and this chat template, as mlx-lm loads it."""
    from mlx_lm.utils import load_tokenizer

    tokens = json.loads((tiny_model / "tokenizer.json").read_text())
    for number, word in enumerate(markers, 259):
        token = {"id": number, "content": word, "special": word.startswith("["), "normalized": False}
        tokens["added_tokens"].append(token | {"single_word": False, "lstrip": False, "rstrip": False})
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    settings = json.loads((tiny_model / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    return load_tokenizer(folder)
