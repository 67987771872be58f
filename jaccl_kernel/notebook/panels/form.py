"""Forms made from an options model: one widget per field, with its label, bounds, default and help."""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets

from jaccl_kernel.core.declare import Option, Options, describe
from jaccl_kernel.core.errors import InputError
from jaccl_kernel.notebook.panels.base import STYLE, short, wide

MOST = 1_000_000  # the upper bound of a number's widget, if the field has none


class Form:
    """Some of a model's fields as widgets.

    Args:
        model: the options.
        names: the fields to show.
        values: their first values; the model's defaults for the others.

    Raises:
        InputError: a value is for no field of the form.
    """

    def __init__(self, model: type[Options], names: Sequence[str], /, **values: Any) -> None:
        self._options = {option.name: option for option in describe(model) if option.name in names}
        if unknown := values.keys() - self._options.keys():
            raise InputError(
                f"there is no option {min(unknown)!r}", fix=f"The options are: {', '.join(names)}."
            )
        self._widgets = {
            name: make_widget(option, values.get(name, option.default))
            for name, option in self._options.items()
        }

    def __getitem__(self, name: str) -> widgets.Widget:
        return self._widgets[name]

    def values(self) -> dict[str, Any]:
        """The values of the widgets, for the model, which checks them."""
        return {name: _value(option, self._widgets[name]) for name, option in self._options.items()}


def make_widget(option: Option, value: Any) -> widgets.Widget:
    """The widget of one field, with a first value; None leaves it to the default."""
    shown = {"description": option.label, "tooltip": option.help}
    if option.kind == "switch":
        layout = widgets.Layout(width="auto")
        return widgets.Checkbox(bool(value), indent=False, layout=layout, **shown)
    if option.choices:
        default = [(f"Default: {option.default_text}", None)] if option.optional else []
        choices = [*default, *((choice, choice) for choice in option.choices)]
        return widgets.Dropdown(options=choices, value=value, style=STYLE, layout=short(), **shown)
    if option.kind in ("integer", "number") and value is not None and not option.listed:
        kind = widgets.BoundedIntText if option.kind == "integer" else widgets.BoundedFloatText
        low, high = option.low or 0, option.high or MOST
        return kind(value, min=low, max=high, style=STYLE, layout=short(), **shown)
    box = widgets.Textarea if option.arg.rows > 1 else widgets.Text
    more = {"rows": option.arg.rows} if option.arg.rows > 1 else {}
    text = _text(value)
    placeholder = option.arg.placeholder or (f"Default: {option.default_text}" if option.default_text else "")
    return box(text, placeholder=placeholder, style=STYLE, layout=wide(), **more, **shown)


def _value(option: Option, widget: widgets.Widget) -> Any:
    if not isinstance(widget, widgets.Text | widgets.Textarea):
        return widget.value
    if isinstance(widget, widgets.Textarea) and widget.value.strip():
        return widget.value
    text = widget.value.strip()
    if not text:
        return None if option.optional else option.default
    return [word.strip() for word in text.split(",")] if option.listed else text


def _text(value: Any) -> str:
    """A value as text: a list with commas, a dictionary as K=V."""
    if isinstance(value, Mapping):
        value = [f"{key}={one}" for key, one in value.items()]
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value or "")
