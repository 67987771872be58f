"""A model cut by layers: the server over two ranks says what one rank alone would."""

import json
from collections.abc import Callable
from pathlib import Path

from jaccl_kernel.inference.request import Request, Sampling
from tests.api.served import serve
from tests.inference.conftest import Running
from tests.tiny import make_tiny_model

PROMPT = list(b"The quick brown fox jumps over the lazy dog.")


async def test_a_pipeline_generates_the_same_tokens_as_one_rank(
    tmp_path: Path, start: Callable[..., Running]
) -> None:
    model = make_tiny_model(tmp_path / "qwen", model_type="qwen2", num_hidden_layers=3)
    index = {"weight_map": dict.fromkeys(weight_names(model / "model.safetensors"), "model.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    one = start(model)
    text = one.tokenizer.decode(await one.tokens(Request(PROMPT, 24, Sampling(temperature=0.0))))
    with serve(model, tmp_path, "--sharding=pipeline") as server:
        body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "logprobs": 0}
        answer = server.post(body).json()
        again = server.post(body).json()
        assert server.settled()["state"] == "ready"
    assert answer["usage"]["completion_tokens"] == 24
    assert answer["choices"][0]["text"] == again["choices"][0]["text"] == text
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == len(PROMPT) - 1


def weight_names(path: Path) -> list[str]:
    """The names in a safetensors file's header."""
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return [name for name in header if name != "__metadata__"]
