"""Finds how a model writes tool calls and reasoning: by its chat template's own text."""

import functools
from typing import Any

from jaccl_kernel.inference.dialect import families
from jaccl_kernel.inference.dialect.families import Dialect
from jaccl_kernel.inference.dialect.whole import WholeReader, library_calls

# the first whose texts are all in the template
FAMILIES: tuple[tuple[tuple[str, ...], Dialect], ...] = (
    (("<|channel|>", "<|message|>", "to=functions."), families.HARMONY),
    (("<|channel|>analysis<|message|>",), families.HARMONY),
    (("｜DSML｜",), families.DEEPSEEK_DSML),
    (("<minimax:tool_call>",), families.MINIMAX),
    (("<|tool_call>", "<tool_call|>"), families.GEMMA),
    (("<start_function_call>",), families.FUNCTION_GEMMA),
    (("<seed:tool_call>",), families.SEED),
    (("<tool_call>", "<arg_key>"), families.GLM),
    (("<tool_call>\\n<function=",), families.QWEN_CODER),
    (("<tool_call>\n<function=",), families.QWEN_CODER),
    (("<|tool_calls_section_begin|>",), families.KIMI),
    ((families.DEEPSEEK_OPEN, "```json"), families.DEEPSEEK_V3),
    ((families.DEEPSEEK_OPEN,), families.DEEPSEEK_V31),
    (("[TOOL_CALLS]", "[CALL_ID]"), families.MISTRAL_IDS),
    (("[TOOL_CALLS]", "[ARGS]"), families.MISTRAL),
    (("[TOOL_CALLS]",), families.MISTRAL_JSON),
    (("<|START_ACTION|>",), families.COMMAND),
    (("Action: ```json",), families.COMMAND_R),
    (("Action:```json",), families.COMMAND_R),
    (("<|tool_list_start|>",), families.PYTHONIC),
    (("<|tool_call_start|>",), families.PYTHONIC),
    (("<tool_call>", '"arguments"'), families.HERMES),
    (("<tool_call>", "tool_call.name"), families.HERMES),
    (("<|python_start|>", "[func_name1("), families.LLAMA_PYTHONIC),
    (("<|eot|>", '"parameters": '), families.LLAMA),
    (("<|eot_id|>", '"parameters": '), families.LLAMA),
    (("<|python_tag|>",), families.LLAMA),
)
# by the `tool_parser_type` of a checkpoint
_OF_MLX_LM = {
    "json_tools": families.HERMES,
    "pythonic": families.PYTHONIC,
}


def dialect_of(tokenizer: Any) -> Dialect:
    """Return how a model writes its calls; one without a parser if that is unknown.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
    """
    return _found(tokenizer)


@functools.lru_cache(maxsize=8)
def _found(tokenizer: Any) -> Dialect:
    text = template_text(tokenizer)
    for marks, dialect in FAMILIES:
        if all(mark in text for mark in marks):
            return dialect
    parser = tokenizer.tool_parser
    if parser is None:
        return Dialect("unknown")
    kind = parser.__module__.rpartition(".")[2]
    if kind in _OF_MLX_LM:
        return _OF_MLX_LM[kind]
    end = tokenizer.tool_call_end
    return Dialect(
        kind,
        lambda tools: WholeReader(library_calls(parser, tools), end),
        (tokenizer.tool_call_start,),
    )


def template_text(tokenizer: Any) -> str:
    """Return the text of a model's chat template, the one for tools if there are several."""
    template = tokenizer.chat_template
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}
    if isinstance(template, dict):
        template = template.get("tool_use") or template.get("default") or ""
    if isinstance(template, str):
        return template
    own = getattr(tokenizer._chat_template, "__module__", "")  # mlx-lm's templates in Python
    return "｜DSML｜" if own.endswith("deepseek_v32") else ""


def thinking(tokenizer: Any) -> tuple[str, str] | None:
    """Return the markers around reasoning, or None."""
    dialect = dialect_of(tokenizer)
    if dialect.channels:
        return "<|channel|>analysis<|message|>", "<|end|>"
    own = dialect.thinking
    if tokenizer.has_thinking and not (own and own[0] in tokenizer.get_vocab()):
        return tokenizer.think_start, tokenizer.think_end
    return own
