"""A prompt on resident ranks: the server's adapters over the same engine, without HTTP. On rank 0."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaccl_kernel.api.adapter import Adapter, Answer, Event
from jaccl_kernel.api.config import ServedModel, ServerConfig
from jaccl_kernel.api.errors import ApiError, api_error
from jaccl_kernel.api.openai.chat import ChatCompletions
from jaccl_kernel.api.openai.completions import Completions
from jaccl_kernel.core.errors import InputError, JobError, Stopped
from jaccl_kernel.inference.engine import Engine
from jaccl_kernel.inference.loaded import LoadedModel
from jaccl_kernel.inference.request import RequestError, Usage
from jaccl_kernel.models.inspect import inspect

DEFAULT_CONTEXT = 4096  # if the model's config has no context length
STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def served(loaded: LoadedModel, path: Path) -> ServedModel:
    """The loaded model as the adapters' ServedModel."""
    context = max(2, min(inspect(path).context or DEFAULT_CONTEXT, loaded.capacity))
    return ServedModel(
        path.name, loaded.tokenizer, context, loaded.vocabulary, needs_boundary=loaded.needs_boundary
    )


def answer(
    engine: Engine, model: ServedModel, body: dict[str, Any], stopping: Callable[[], bool]
) -> Iterator[Event]:
    """The events that the server streams for this body; the usage is last.

    Args:
        engine: steps the model, on this thread.
        model: the served model.
        body: a request of OpenAI's chat (`messages`) or completion (`prompt`) protocol.
        stopping: called after each step; once true, choices end with the reason "stopped".

    Raises:
        InputError: the request is invalid.
        JobError: the request cannot be served.
    """
    try:
        adapter = _adapter(body | STREAM, model)
        for index, chunk in engine.generate(*adapter.requests(), stopping=stopping):
            yield from adapter.events(index, chunk)
        yield from adapter.last_events()
    except (ApiError, RequestError) as error:
        raise _error(error) from None


def complete_answer(
    engine: Engine, model: ServedModel, body: dict[str, Any], stopping: Callable[[], bool]
) -> tuple[str, Usage]:
    """The text and usage of the complete answer; else as `answer`.

    Raises:
        Stopped: it was stopped.
    """
    joined = Answer()
    try:
        for _, chunk in engine.generate(*_adapter(body, model).requests(), stopping=stopping):
            joined.add(chunk)
    except (ApiError, RequestError) as error:
        raise _error(error) from None
    assert joined.finish
    if joined.finish.reason == "stopped":
        raise Stopped("stopped", fix="Run it again.")
    return joined.text, joined.finish.usage


def _adapter(body: dict[str, Any], model: ServedModel) -> Adapter:
    adapter = (ChatCompletions if "messages" in body else Completions)(body, model)
    if adapter.choices > (most := ServerConfig().max_choices):
        raise ApiError(400, f"n: at most {most} choices in one request (got {adapter.choices})", param="n")
    return adapter


def _error(error: ApiError | RequestError) -> InputError | JobError:
    known = api_error(error)
    return InputError(known.message) if known.status < 500 else JobError(known.message)
