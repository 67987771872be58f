"""Model families: a template of our own in the shape of each, and two calls as its models write them.

The calls are weather(city="Zürich", days=3) and weather(city='say "hi"').
"""

from dataclasses import dataclass, field
from typing import Any

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "place": {"$ref": "#/$defs/Place"},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {
        "Place": {
            "type": "object",
            "properties": {"lat": {"type": "number"}, "tags": {"type": "array", "items": {"type": "string"}}},
            "required": ["lat"],
            "additionalProperties": False,
        }
    },
}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
ONE, OTHER = {"city": "Zürich", "days": 3}, {"city": 'say "hi"'}


@dataclass(frozen=True)
class Family:
    """One family.

    Args:
        call: how its template renders `tool_call`, an object with a name and arguments.
        calls: both calls, as its models write them.
        markers: its tokens for markers.
        thinks: the markers of reasoning.
        marks: further text of its template.
        first: the call that is cut in the middle.
    """

    call: str
    calls: str
    markers: tuple[str, ...]
    thinks: tuple[str, str] = ("<think>", "</think>")
    marks: str = ""
    prompt: str = "<s>assistant: "
    ids: tuple[str, ...] = field(default=())

    def template(self) -> str:
        """The chat template."""
        return (
            f"{{# {self.marks} #}}"
            "{% for tool in tools or [] %}<s>tool {{ tool.function.name }}</s>{% endfor %}"
            "{% for message in messages %}<s>{{ message.role }}: "
            "{% if message.reasoning_content or message.thinking %}("
            "{{ message.reasoning_content or message.thinking }}){% endif %}"
            "{{ message.content }}{% if message.tool_call_id %} [{{ message.tool_call_id }}]{% endif %}"
            "{% for call in message.tool_calls or [] %}{% set tool_call = call.function %}"
            "{% set id = call.id %}" + self.call + "{% endfor %}"
            f"</s>{{% endfor %}}{{% if add_generation_prompt %}}{self.prompt}{{% endif %}}"
            f"{{% if open_think %}}{self.thinks[0]}{{% endif %}}"
        )


def _xml(call: str, parameter: str, end: str) -> str:
    return call + "{% for key, value in tool_call.arguments.items() %}" + parameter + "{% endfor %}" + end


VALUE = "{{ value if value is string else value | tojson }}"
JSON = "{{ tool_call.arguments | tojson }}"
SEPARATOR = "{% if not loop.last %}, {% endif %}"
PYTHON = "[{{ tool_call.name }}(" + _xml("", "{{ key }}={{ value | tojson }}" + SEPARATOR, ")]")
GEMMA = _xml(
    "OPENcall:{{ tool_call.name }}{{ '{' }}",
    "{{ key }}:{% if value is string %}QUOTE{{ value }}QUOTE{% else %}{{ value | tojson }}{% endif %}"
    "{% if not loop.last %},{% endif %}",
    "}CLOSE",
)
A, B = '{"city": "Zürich", "days": 3}', '{"city": "say \\"hi\\""}'
DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>",
            "<｜tool▁sep｜>")  # fmt: skip
HARMONY = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", "<|constrain|>")

FAMILIES = {
    "Hermes": Family(
        '<tool_call>\n{"name": "{{ tool_call.name }}", "arguments": ' + JSON + "}\n</tool_call>",
        f'<tool_call>\n{{"name": "weather", "arguments": {A}}}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "weather", "arguments": {B}}}\n</tool_call>',
        ("<tool_call>", "</tool_call>"),
    ),
    "Qwen3-Coder": Family(
        _xml("<tool_call>\n<function={{ tool_call.name }}>\n",
             "<parameter={{ key }}>\n" + VALUE + "\n</parameter>\n", "</function>\n</tool_call>"),
        "<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n<parameter=days>\n3\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=weather>\n<parameter=city>\n"
        'say "hi"\n</parameter>\n</function>\n</tool_call>',
        ("<tool_call>", "</tool_call>"),
    ),
    "GLM": Family(
        _xml("<tool_call>{{ tool_call.name }}\n",
             "<arg_key>{{ key }}</arg_key>\n<arg_value>" + VALUE + "</arg_value>\n", "</tool_call>"),
        "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n<arg_key>days</arg_key>"
        "\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>"
        'say "hi"</arg_value>\n</tool_call>',
        ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    "MiniMax": Family(
        _xml('<minimax:tool_call>\n<invoke name="{{ tool_call.name }}">\n',
             '<parameter name="{{ key }}">' + VALUE + "</parameter>\n", "</invoke>\n</minimax:tool_call>"),
        '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Zürich</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n<invoke name="weather">\n<parameter name="city">'
        'say "hi"</parameter>\n</invoke>\n</minimax:tool_call>',
        ("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    "Seed-OSS": Family(
        _xml("<seed:tool_call>\n<function={{ tool_call.name }}>\n",
             "<parameter={{ key }}>" + VALUE + "</parameter>\n", "</function>\n</seed:tool_call>"),
        "<seed:tool_call>\n<function=weather>\n<parameter=city>Zürich</parameter>\n<parameter=days>3"
        "</parameter>\n</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=weather>\n<parameter=city>"
        'say "hi"</parameter>\n</function>\n</seed:tool_call>',
        ("<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>"),
        ("<seed:think>", "</seed:think>"),
    ),
    "DeepSeek V3.2": Family(
        _xml('<｜DSML｜function_calls>\n<｜DSML｜invoke name="{{ tool_call.name }}">\n',
             '<｜DSML｜parameter name="{{ key }}" string="{{ "true" if value is string else "false" }}">'
             + VALUE + "</｜DSML｜parameter>\n", "</｜DSML｜invoke>\n</｜DSML｜function_calls>"),
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string='
        '"true">Zürich</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3'
        "</｜DSML｜parameter>\n"
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">'
        'say "hi"</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        ("<think>", "</think>"),
    ),
    "DeepSeek V3": Family(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ tool_call.name }}\n```json\n"
        "{{ '' + tool_call.arguments }}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n" + A
        + "\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n" + B
        + "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        DEEPSEEK,
    ),
    "DeepSeek V3.1": Family(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ tool_call.name }}<｜tool▁sep｜>"
        "{{ '' + tool_call.arguments }}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>" + A + "<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>weather<｜tool▁sep｜>" + B + "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        DEEPSEEK,
    ),
    "Kimi K2": Family(
        "<|tool_calls_section_begin|><|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>" + JSON
        + "<|tool_call_end|><|tool_calls_section_end|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>" + A
        + "<|tool_call_end|><|tool_call_begin|>functions.weather:1<|tool_call_argument_begin|>" + B
        + "<|tool_call_end|><|tool_calls_section_end|>",
        ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
         "<|tool_call_end|>", "<|tool_calls_section_end|>"),
        ids=("functions.weather:0", "functions.weather:1"),
    ),
    "Mistral": Family(
        "[TOOL_CALLS]{{ tool_call.name }}[ARGS]" + JSON,
        f"[TOOL_CALLS]weather[ARGS]{A}[TOOL_CALLS]weather[ARGS]{B}",
        ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
        ("[THINK]", "[/THINK]"),
    ),
    "Mistral with ids": Family(
        "[TOOL_CALLS]{{ tool_call.name }}[CALL_ID]{{ id }}[ARGS]" + JSON,
        f"[TOOL_CALLS]weather[CALL_ID]abcdef123[ARGS]{A}[TOOL_CALLS]weather[CALL_ID]abcdef124[ARGS]{B}",
        ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"),
        ("[THINK]", "[/THINK]"),
        ids=("abcdef123", "abcdef124"),
    ),
    "Mistral with JSON": Family(
        '[TOOL_CALLS] [{"name": "{{ tool_call.name }}", "arguments": ' + JSON + ', "id": "{{ id }}"}]',
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {A}}}, {{"name": "weather", "arguments": {B}}}]',
        ("[TOOL_CALLS]", "[THINK]", "[/THINK]"),
        ("[THINK]", "[/THINK]"),
    ),
    "Command": Family(
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "{{ tool_call.name }}", "parameters": '
        + JSON + "}\n]<|END_ACTION|>",
        f'<|START_ACTION|>[\n    {{"tool_call_id": "0", "tool_name": "weather", "parameters": {A}}},\n    '
        f'{{"tool_call_id": "1", "tool_name": "weather", "parameters": {B}}}\n]<|END_ACTION|>',
        ("<|START_ACTION|>", "<|END_ACTION|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
    ),
    "Command R": Family(
        'Action: ```json\n[\n    {"tool_name": "{{ tool_call.name }}", "parameters": ' + JSON + "}\n]```",
        f'Action: ```json\n[\n    {{"tool_name": "weather", "parameters": {A}}},\n    '
        f'{{"tool_name": "weather", "parameters": {B}}}\n]```',
        (),
    ),
    "Llama 3": Family(
        '{"name": "{{ tool_call.name }}", "parameters": ' + JSON + "}",
        f'{{"name": "weather", "parameters": {A}}}; {{"name": "weather", "parameters": {B}}}',
        ("<|python_tag|>", "<|eot_id|>"),
        marks="<|eot_id|>",
    ),
    "Llama 4 with Python calls": Family(
        PYTHON,
        '[weather(city="Zürich", days=3), weather(city="say \\"hi\\"")]',
        ("<|python_start|>", "<|python_end|>"),
        marks="<|python_start|> [func_name1(params)]",
    ),
    "LFM2": Family(
        "<|tool_call_start|>" + PYTHON + "<|tool_call_end|>",
        '<|tool_call_start|>[weather(city="Zürich", days=3), weather(city="say \\"hi\\"")]<|tool_call_end|>',
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "Gemma 4": Family(
        GEMMA.replace("QUOTE", '<|"|>').replace("OPEN", "<|tool_call>").replace("CLOSE", "<tool_call|>"),
        '<|tool_call>call:weather{city:<|"|>Zürich<|"|>,days:3}<tool_call|>'
        '<|tool_call>call:weather{city:<|"|>say "hi"<|"|>}<tool_call|>',
        ("<|tool_call>", "<tool_call|>", '<|"|>'),
    ),
    "FunctionGemma": Family(
        GEMMA.replace("QUOTE", "<escape>")
        .replace("OPEN", "<start_function_call>")
        .replace("CLOSE", "<end_function_call>"),
        "<start_function_call>call:weather{city:<escape>Zürich<escape>,days:3}<end_function_call>"
        '<start_function_call>call:weather{city:<escape>say "hi"<escape>}<end_function_call>',
        ("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
    "gpt-oss": Family(
        "<|start|>assistant to=functions.{{ tool_call.name }}<|channel|>commentary json<|message|>" + JSON
        + "<|call|>",
        "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>" + A + "<|end|><|start|>"
        "assistant to=functions.weather<|channel|>commentary json<|message|>" + B + "<|call|>",
        HARMONY,
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
        prompt="<|start|>assistant",
    ),
}  # fmt: skip
