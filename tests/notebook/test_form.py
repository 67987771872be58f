"""Forms made from the options models."""

import ipywidgets as widgets
import pytest

from jaccl_kernel.core.declare import Options, describe
from jaccl_kernel.core.errors import InputError
from jaccl_kernel.core.options import BenchOptions, ServeOptions, SyncOptions
from jaccl_kernel.notebook.panels.form import Form


def form_of(model: type[Options]) -> Form:
    names = [option.name for option in describe(model)]
    return Form(model, names, **{"model": "demo"} if model is SyncOptions else {})


@pytest.mark.parametrize("model", [BenchOptions, ServeOptions, SyncOptions])
def test_a_form_shows_label_bounds_default_and_help_of_each_field(model: type[Options]) -> None:
    form = form_of(model)
    for option in describe(model):
        widget = form[option.name]
        assert (widget.description, widget.tooltip) == (option.label, option.help)
        if option.kind in ("integer", "number") and option.default is not None:
            assert widget.min == (option.low or 0)
            assert widget.max == (option.high or widget.max)
        if option.choices:
            assert {one for one in widget._options_values if one} == set(option.choices)
        if isinstance(widget, widgets.Text) and option.arg.default and not option.arg.placeholder:
            assert widget.placeholder == f"Default: {option.arg.default}"


@pytest.mark.parametrize("model", [BenchOptions, ServeOptions, SyncOptions])
def test_an_untouched_form_gives_the_defaults(model: type[Options]) -> None:
    first = {"model": "demo"} if model is SyncOptions else {}
    assert model(**form_of(model).values()) == model(**first)


def test_a_list_is_typed_with_commas() -> None:
    form = Form(BenchOptions, ("ranks", "env"), ranks=(1, 2), env={"A": "b"})
    assert (form["ranks"].value, form["env"].value) == ("1, 2", "A=b")
    form["env"].value += ", C=d"
    options = BenchOptions(**form.values())
    assert (options.ranks, options.env) == ((1, 2), {"A": "b", "C": "d"})


def test_typed_values_are_checked_by_the_model() -> None:
    form = Form(ServeOptions, ("context", "host", "sharding", "restart"), restart=True)
    form["context"].value = " 4096 "
    form["sharding"].value = "pipeline"
    options = ServeOptions(**form.values())
    assert (options.context, options.sharding, options.restart) == (4096, "pipeline", True)
    form["context"].value = "many"
    with pytest.raises(InputError, match="--context must be a whole number"):
        ServeOptions(**form.values())


def test_a_value_for_another_field_is_refused() -> None:
    with pytest.raises(InputError, match="there is no option 'hots'"):
        Form(ServeOptions, ("host",), hots="x")
