"""The options models: bounds, errors, and the command lines made from them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaccl_kernel.core import options as models
from jaccl_kernel.core.declare import Option, Options, describe, from_argv, to_argv
from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.options import BenchOptions, BenchProgram, ServeOptions, ServeProgram, SyncOptions

MODELS = [
    one
    for one in vars(models).values()
    if isinstance(one, type) and issubclass(one, Options) and one is not Options
]
FIELDS = [(model, option) for model in MODELS for option in describe(model)]
REQUIRED: dict[type[Options], dict[str, Any]] = {SyncOptions: {"model": "m"}}


def fields(*kinds: str) -> Any:
    found = [one for one in FIELDS if ("choice" if one[1].choices else one[1].kind) in kinds]
    return pytest.mark.parametrize(
        ("model", "option"), found, ids=[f"{model.__name__}{option.flag}" for model, option in found]
    )


def make(model: type[Options], /, **values: Any) -> Options:
    return model(**REQUIRED.get(model, {}) | values)


def refused(model: type[Options], /, **values: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        make(model, **values)
    return caught.value


@fields("integer", "number")
def test_each_number_has_bounds_and_its_error_names_the_option(model: type[Options], option: Option) -> None:
    assert option.low is not None
    low = option.low if option.above else option.low - 1
    error = refused(model, **{option.name: (low,) if option.listed else low})
    word = "more than" if option.above else "at least"
    assert error.what.startswith(f"{option.flag} must be {word} {option.low:g} (got ")
    assert error.fix.startswith("Use ")
    if option.high is not None:
        error = refused(model, **{option.name: option.high + 1})
        assert error.what == f"{option.flag} must be at most {option.high:g} (got {option.high + 1})"
    for wrong in ("x", "", "nan", "inf"):
        assert refused(model, **{option.name: wrong}).what.startswith(f"{option.flag} must be ")


@fields("choice")
def test_a_choice_names_the_valid_ones(model: type[Options], option: Option) -> None:
    error = refused(model, **{option.name: "other"})
    assert error.what == f"{option.flag} must be one of {', '.join(option.choices)} (got 'other')"


@pytest.mark.parametrize("model", MODELS)
def test_every_option_has_a_help_of_one_line_that_is_no_sentence_fragment_with_a_stop(
    model: type[Options],
) -> None:
    for option in describe(model):
        assert option.help
        assert option.help[0].isupper() or option.help.startswith("MLX")
        assert not option.help.endswith(".")
        assert "\n" not in option.help


def test_an_unknown_option_is_refused_and_the_known_ones_are_named() -> None:
    error = refused(BenchOptions, max_token=1)
    assert error.what == "there is no option 'max_token'"
    assert "max_tokens" in error.fix


def test_a_required_option_is_named() -> None:
    model: type[Options] = SyncOptions
    with pytest.raises(InputError, match="--model is required"):
        model()


@pytest.mark.parametrize(
    ("model", "values", "words"),
    [
        (BenchOptions, {"prompt": " "}, "--prompt must not be empty"),
        (
            BenchOptions,
            {"prompt": "a", "prompt_tokens": 1},
            "--prompt and --prompt-tokens exclude each other",
        ),
        (BenchOptions, {"env": ["OOPS"]}, "--env must be NAME=VALUE"),
        (BenchOptions, {"env": {"A-B": "1"}}, "--env must be NAME=VALUE"),
        (BenchOptions, {"ranks": "1,x"}, "--ranks must be whole numbers with commas"),
        (ServeOptions, {"port": 9, "ctrl_port": 9}, "--port and --ctrl-port must differ"),
        (ServeOptions, {"api_key": "short"}, "the API key is too short"),
    ],
)
def test_what_one_bound_cannot_say_is_checked_too(
    model: type[Options], values: dict[str, Any], words: str
) -> None:
    assert words in refused(model, **values).what


def test_lists_are_read_as_a_command_line_writes_them() -> None:
    options = BenchOptions(ranks="1,2", env=["A=b=c", "D="])  # type: ignore[arg-type]  # as the CLI does
    assert (options.ranks, options.env) == ((1, 2), {"A": "b=c", "D": ""})
    assert BenchOptions(fast_synch=True).environment() == {"MLX_METAL_FAST_SYNCH": "1"}


def test_changed_options_are_checked_again() -> None:
    with pytest.raises(InputError, match="--max-batch"):
        ServeOptions().replace(max_batch=0)


def value_of(option: Option) -> st.SearchStrategy[Any]:
    words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
    one: st.SearchStrategy[Any] = {
        "switch": st.booleans(),
        "integer": st.integers(int(option.low or 1), int(option.high or 10**9)),
        "number": st.floats(option.low or 0, 1e9, exclude_min=option.above),
        "text": st.sampled_from(option.choices) if option.choices else words,
    }[option.kind]
    if option.name == "api_key":
        one = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8)
    if option.name == "env":
        return st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]*", fullmatch=True), words)
    return st.lists(one, min_size=1).map(tuple) if option.listed else one


@st.composite
def any_options(draw: st.DrawFn, model: type[Options]) -> Options:
    names = {option.name: option for option in describe(model)}
    chosen = draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
    values = {name: draw(value_of(names[name])) for name in chosen}
    try:
        return make(model, **values)
    except InputError:  # options that exclude each other
        return make(model)


@pytest.mark.parametrize("model", MODELS)
@given(data=st.data())
def test_options_come_back_from_their_command_line(model: type[Options], data: st.DataObject) -> None:
    options = data.draw(any_options(model))
    assert from_argv(model, to_argv(options), prog="x") == options


def test_a_rank_gets_what_its_program_parses_and_no_secret() -> None:
    options = ServeOptions(api_key="a secret key", restart=True, env={"A": "b"}, max_batch=4, port=9000)
    name, *words = options.program("~/models/a model")
    assert name == "serve"
    assert words == ["--model=~/models/a model", "--port=9000", "--max-batch=4"]
    assert from_argv(ServeProgram, words, prog="x").max_batch == 4
    name, *words = BenchOptions(ranks=(1, 2)).program("m")
    program = from_argv(BenchProgram, words, prog="x")
    assert (program.model, program.text, program.max_tokens) == ("m", models.DEFAULT_PROMPT, 128)


def test_a_rank_s_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        from_argv(ServeProgram, ["--help"], prog="ranks serve")
    shown = capsys.readouterr().out
    assert all(option.flag in shown for option in describe(ServeProgram))
    with pytest.raises(SystemExit, match=r"^2$"):
        from_argv(ServeProgram, [], prog="ranks serve", need=("model",))
