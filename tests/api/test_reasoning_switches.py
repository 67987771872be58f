"""Each client's way to switch reasoning on or off reaches the template, or is refused by name."""

from typing import Any

import httpx
import pytest

from tests.api.scripted import Engine, prompt, say

ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "x"}],
    "chat_template_kwargs": {"open_think": True},
}


@pytest.mark.parametrize(
    ("switch", "thinks"),
    [
        ({"reasoning": {"effort": "high"}}, True),  # Continue, OpenRouter
        ({"reasoning": {"effort": "none"}}, False),
        ({"reasoning": {"enabled": False}}, False),
        ({"reasoning": {"enabled": False, "effort": "high"}}, False),
        ({"reasoning": True}, True),
        ({"reasoning_effort": "low"}, True),
        ({"thinking": {"type": "disabled"}}, False),  # Z.ai, Moonshot
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "disabled"}, "reasoning": {"effort": "high"}}, False),
        ({"enable_thinking": False}, False),
        ({"enable_thinking": True}, True),
    ],
)
def test_a_switch_for_reasoning_reaches_the_template(
    engine: Engine, agent: str, agent_tokenizer: Any, switch: dict[str, Any], thinks: bool
) -> None:
    say(engine, agent_tokenizer, "4.")
    assert httpx.post(f"{agent}/v1/chat/completions", json=ASKED | switch).status_code == 200
    assert prompt(engine, agent_tokenizer).endswith("<think>") is thinks


@pytest.mark.parametrize(
    ("switch", "param"),
    [
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"reasoning": "high"}, "reasoning"),
        ({"enable_thinking": "perhaps"}, "enable_thinking"),
    ],
)
def test_a_switch_that_is_not_understood_is_refused_by_name(
    agent: str, switch: dict[str, Any], param: str
) -> None:
    refused = httpx.post(f"{agent}/v1/chat/completions", json=ASKED | switch)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith(param)
