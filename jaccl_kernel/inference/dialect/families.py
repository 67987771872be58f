"""The table of families: how each one writes tool calls. detect.py finds a model's entry.

An entry says how calls are read, how a forced call is written (a grammar), what ids they have, and what the
family's template needs of earlier turns. Sources: the chat templates and tool parsers that the families'
authors publish with their models.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaccl_kernel.inference.dialect import history
from jaccl_kernel.inference.dialect.forms import (
    Form,
    gemma_arguments,
    json_arguments,
    python_arguments,
    tagged_arguments,
)
from jaccl_kernel.inference.dialect.reader import JsonReader, Reader, new_id
from jaccl_kernel.inference.dialect.tagged import TaggedReader, Tags
from jaccl_kernel.inference.dialect.whole import WholeReader, gemma_calls, python_calls

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Dialect:
    """How a family of models writes tool calls and reasoning.

    Args:
        name: the family.
        read: returns a reader of the calls of these tools; None if there is no parser.
        starts: the markers that begin calls.
        form: how a forced call is written; None if that is unknown.
        bare: the first characters of an answer that may be a call without a marker.
        channels: whether each message begins with a header that names its channel (gpt-oss).
        thinking: the markers of reasoning that mlx-lm does not know.
        silent: markers that are no text.
        history: converts earlier turns for the template.
    """

    name: str
    read: Callable[[Tools], Reader] | None = None
    starts: tuple[str, ...] = ()
    form: Form | None = None
    bare: str = ""
    channels: bool = False
    thinking: tuple[str, str] | None = None
    silent: tuple[str, ...] = ()
    history: Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]] = list


_NAME = r'"(?:name|tool_name)"\s*:\s*"(?P<name>[^"\\]+)"'
JSON_HEAD = re.compile(
    r'\{\s*(?:(?:"id"\s*:\s*"(?P<id>[^"\\]*)"|"(?:type|tool_call_id)"\s*:\s*"[^"]*")\s*,\s*)*'
    + _NAME
    + r'\s*,\s*"(?:arguments|parameters)"\s*:\s*'
)


def _names(tools: Tools) -> set[str]:
    return {str(tool["function"]["name"]) for tool in tools}


def _json(end: str, head: re.Pattern[str] = JSON_HEAD) -> Callable[[Tools], Reader]:
    return lambda tools: JsonReader(head, end)


def _tagged(tags: Tags) -> Callable[[Tools], Reader]:
    return lambda tools: TaggedReader(tags, tools)


HERMES = Dialect(
    "Hermes",  # and Qwen 2.5 and 3
    _json("</tool_call>"),
    ("<tool_call>",),
    Form('<tool_call>\n{"name": "{name}", "arguments": ', "}\n</tool_call>", json_arguments, between="\n"),
)

QWEN_CODER = Dialect(
    "Qwen3-Coder",  # and Qwen 3.5
    _tagged(
        Tags(
            re.compile(r"<function=\s*(?P<name>[^\s<>]+)\s*>"),
            "</function>",
            re.compile(r"<parameter=\s*(?P<key>[^\s<>]+)\s*>"),
            "</parameter>",
            "</tool_call>",
            newline=True,
        )
    ),
    ("<tool_call>",),
    Form(
        "<tool_call>\n<function={name}>\n",
        "</function>\n</tool_call>",
        tagged_arguments("<parameter={key}>\n", "\n</parameter>\n"),
        between="\n",
    ),
)

GLM = Dialect(
    "GLM 4.5",  # to 5
    _tagged(
        Tags(
            re.compile(r"\A\s*(?P<name>[^\s<>{}]{1,200})\s*(?=<arg_key>|</tool_call>)"),
            "</tool_call>",
            re.compile(r"<arg_key>\s*(?P<key>[^<>]*?)\s*</arg_key>(?:\\n|\s)*<arg_value>"),
            "</arg_value>",
            "</tool_call>",
        )
    ),
    ("<tool_call>",),
    Form(
        "<tool_call>{name}\n",
        "</tool_call>",
        tagged_arguments("<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>"),
        between="\n",
    ),
)

MINIMAX = Dialect(
    "MiniMax M2",
    _tagged(
        Tags(
            re.compile(r"""<invoke name=["']?(?P<name>[^\s<>"']+)["']?\s*>"""),
            "</invoke>",
            re.compile(r"""<parameter name=["']?(?P<key>[^\s<>"']+)["']?\s*>"""),
            "</parameter>",
            "</minimax:tool_call>",
        )
    ),
    ("<minimax:tool_call>",),
    Form(
        '<invoke name="{name}">\n',
        "</invoke>\n",
        tagged_arguments('<parameter name="{key}">', "</parameter>\n"),
        open="<minimax:tool_call>\n",
        close="</minimax:tool_call>",
    ),
)

SEED = Dialect(
    "Seed-OSS",
    _tagged(
        Tags(
            re.compile(r"<function=\s*(?P<name>[^\s<>]+)\s*>"),
            "</function>",
            re.compile(r"<parameter=\s*(?P<key>[^\s<>]+)\s*>"),
            "</parameter>",
            "</seed:tool_call>",
        )
    ),
    ("<seed:tool_call>",),
    Form(
        "<seed:tool_call>\n<function={name}>\n",
        "</function>\n</seed:tool_call>",
        tagged_arguments("<parameter={key}>", "</parameter>\n"),
        between="\n",
    ),
    thinking=("<seed:think>", "</seed:think>"),
)

DEEPSEEK_DSML = Dialect(
    "DeepSeek V3.2",
    _tagged(
        Tags(
            re.compile(r'<｜DSML｜invoke name="(?P<name>[^"]+)"\s*>'),
            "</｜DSML｜invoke>",
            re.compile(
                r'<｜DSML｜parameter name="(?P<key>[^"]+)"(?:\s+string="(?P<string>true|false)")?\s*>'
            ),
            "</｜DSML｜parameter>",
            "</｜DSML｜function_calls>",
        )
    ),
    ("<｜DSML｜function_calls>",),
    Form(
        '<｜DSML｜invoke name="{name}">\n',
        "</｜DSML｜invoke>\n",
        tagged_arguments('<｜DSML｜parameter name="{key}" string="{string}">', "</｜DSML｜parameter>\n"),
        open="<｜DSML｜function_calls>\n",
        close="</｜DSML｜function_calls>",
    ),
)

DEEPSEEK_OPEN, _DEEPSEEK_CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_DEEPSEEK_HEAD = re.compile(
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>[^\s<｜]+)(?:\s*```json\s*|<｜tool▁sep｜>\s*)(?=\S)"
)

DEEPSEEK_V3 = Dialect(
    "DeepSeek V3",  # and R1
    _json(_DEEPSEEK_CLOSE, _DEEPSEEK_HEAD),
    (DEEPSEEK_OPEN,),
    Form(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
        "\n```<｜tool▁call▁end｜>",
        json_arguments,
        open=DEEPSEEK_OPEN,
        close=_DEEPSEEK_CLOSE,
        between="\n",
    ),
)

DEEPSEEK_V31 = Dialect(
    "DeepSeek V3.1",
    _json(_DEEPSEEK_CLOSE, _DEEPSEEK_HEAD),
    (DEEPSEEK_OPEN,),
    Form(
        "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        json_arguments,
        open=DEEPSEEK_OPEN,
        close=_DEEPSEEK_CLOSE,
    ),
)

KIMI = Dialect(
    "Kimi K2",
    _json(
        "<|tool_calls_section_end|>",
        re.compile(
            r"<\|tool_call_begin\|>\s*(?P<id>(?:functions\.)?(?P<name>[^\s<>:]+):\d+)\s*"
            r"<\|tool_call_argument_begin\|>\s*(?=\S)"
        ),
    ),
    ("<|tool_calls_section_begin|>",),
    Form(
        "<|tool_call_begin|>functions.{name}:{n}<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        json_arguments,
        open="<|tool_calls_section_begin|>",
        close="<|tool_calls_section_end|>",
    ),
)

_MISTRAL_HEAD = re.compile(
    r"(?P<name>[\w.-]{1,128})\s*(?:\[CALL_ID\]\s*(?P<id>[a-zA-Z0-9]{9})\s*)?\[ARGS\]\s*(?=\S)"
)
_MISTRAL: dict[str, Any] = {
    "read": lambda tools: JsonReader(_MISTRAL_HEAD, "", history.mistral_id, _names(tools)),
    "starts": ("[TOOL_CALLS]",),
    "thinking": ("[THINK]", "[/THINK]"),
    "history": history.mistral,
}

MISTRAL = Dialect(
    "Mistral",  # Devstral and Magistral
    form=Form("[TOOL_CALLS]{name}[ARGS]", "", json_arguments),
    **_MISTRAL,
)

MISTRAL_IDS = Dialect(
    "Mistral with ids",  # Mistral Small 3.2
    form=Form("[TOOL_CALLS]{name}[CALL_ID]{id}[ARGS]", "", json_arguments),
    **_MISTRAL,
)

MISTRAL_JSON = Dialect(
    "Mistral with JSON",  # up to 2025: one list of calls
    form=Form(
        '{"name": "{name}", "arguments": ',
        "}",
        json_arguments,
        open="[TOOL_CALLS] [",
        close="]",
        between=", ",
    ),
    **_MISTRAL,
)

COMMAND = Dialect(
    "Command",  # R7B and A
    _json("<|END_ACTION|>"),
    ("<|START_ACTION|>",),
    Form(
        '{"tool_call_id": "{n}", "tool_name": "{name}", "parameters": ',
        "}",
        json_arguments,
        open="<|START_ACTION|>[\n    ",
        close="\n]<|END_ACTION|>",
        between=",\n    ",
    ),
    thinking=("<|START_THINKING|>", "<|END_THINKING|>"),
    silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
)

COMMAND_R = Dialect(
    "Command R",
    _json("```"),
    ("Action: ```json", "Action:```json"),
    Form(
        '{"tool_name": "{name}", "parameters": ',
        "}",
        json_arguments,
        open="Action: ```json\n[\n    ",
        close="\n]```",
        between=",\n    ",
    ),
)

LLAMA = Dialect(
    "Llama 3",  # and 4
    lambda tools: JsonReader(JSON_HEAD, "", new_id, _names(tools), bare=True),
    ("<|python_tag|>", "<|python_start|>"),
    Form('{"name": "{name}", "parameters": ', "}", json_arguments, between="; ", bare=True),
    bare="{",
    silent=("<|python_end|>",),
)

LLAMA_PYTHONIC = Dialect(
    "Llama 4 with Python calls",
    lambda tools: WholeReader(python_calls(tools), ""),
    ("<|python_start|>",),
    Form("{name}(", ")", python_arguments, open="[", close="]", between=", "),
    bare="[",
    silent=("<|python_end|>",),
)

PYTHONIC = Dialect(
    "LFM2",
    lambda tools: WholeReader(python_calls(tools), "<|tool_call_end|>"),
    ("<|tool_call_start|>",),
    Form(
        "{name}(",
        ")",
        python_arguments,
        open="<|tool_call_start|>[",
        close="]<|tool_call_end|>",
        between=", ",
    ),
)

GEMMA = Dialect(
    "Gemma 4",
    lambda tools: WholeReader(gemma_calls('<|"|>'), "<tool_call|>", '<|"|>'),
    ("<|tool_call>",),
    Form("<|tool_call>call:{name}", "<tool_call|>", gemma_arguments('<|"|>')),
)

FUNCTION_GEMMA = Dialect(
    "FunctionGemma",
    lambda tools: WholeReader(gemma_calls("<escape>"), "<end_function_call>", "<escape>"),
    ("<start_function_call>",),
    Form("<start_function_call>call:{name}", "<end_function_call>", gemma_arguments("<escape>")),
)

HARMONY = Dialect(
    "gpt-oss",
    _json("", re.compile(r"to=functions\.(?P<name>[\w.-]+).*?<\|message\|>\s*(?=\S)", re.DOTALL)),
    form=Form(
        "<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",
        "",
        json_arguments,
        between=None,
    ),
    channels=True,
    history=history.harmony,
)
