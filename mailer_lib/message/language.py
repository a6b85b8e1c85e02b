"""The template language: sandboxed Jinja2 over ``contact``, ``campaign``, ``list_title`` and ``postal_address``.

``{{ contact.tier }}`` and ``{{ contact.attributes.tier }}`` are the same; given_name, family_name, locale, timezone and
address are fields too. A field without a value and without a default may be tested, compared and given a default
(``{% if contact.tier %}``, ``{{ contact.tier or "…" }}``, ``|default("…")``) but not printed: that fails the message,
because "Dear ," is worse than no mail. Links: ``{{ unsubscribe_url }}``, ``{{ view_url }}``, ``{{ open_pixel_url }}``,
``{{ link(3) }}``.
"""

import html
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from mailer_lib.message import localise

SAFE_SCHEMES = frozenset({"http", "https", "mailto", "tel", "sms", "cid"})
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_IGNORED_IN_URLS = re.compile(r"[\x00-\x20\x7f-\x9f\xad\u200b-\u200f\u2028-\u202f\u2060-\u2064\ufeff]")


class MissingField(StrictUndefined):
    """What a field without a value is: false, equal to nothing, and an error when it is printed."""

    __bool__ = Undefined.__bool__  # type: ignore[assignment]
    __eq__ = Undefined.__eq__  # type: ignore[assignment]
    __ne__ = Undefined.__ne__  # type: ignore[assignment]
    __hash__ = Undefined.__hash__  # type: ignore[assignment]

    @property
    def _undefined_message(self) -> str:
        if isinstance(self._undefined_obj, Fields):
            return f"the merge field {self._undefined_obj.of}.{self._undefined_name} has no value and no default"
        return super()._undefined_message


class Fields:
    """Named values for templates; unlike a dict it has no methods that a field's name could collide with."""

    __slots__ = ("data", "of")

    def __init__(self, data: Mapping[str, Any], of: str) -> None:
        self.data = data
        self.of = of

    def __repr__(self) -> str:
        return f"Fields of {self.of}"  # never the values: they would end up in logs


class TemplateLanguage(ImmutableSandboxedEnvironment):
    """The Jinja2 environment of every template; ``autoescape`` for HTML."""

    def __init__(self, *, autoescape: bool) -> None:
        super().__init__(autoescape=autoescape, undefined=MissingField, keep_trailing_newline=True)
        del self.globals["lipsum"]  # not the same twice
        self.filters["safe_url"] = safe_url
        self.filters["number"] = localise.number_filter
        self.filters["date"] = localise.date_filter

    def getattr(self, obj: Any, attribute: str) -> Any:
        if obj.__class__ is Fields:
            try:
                return obj.data[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if obj.__class__ is Fields:
            try:
                return obj.data[argument]
            except (KeyError, TypeError):
                return self.undefined(obj=obj, name=str(argument))
        return super().getitem(obj, argument)


def safe_url(value: Any) -> Any:
    """A URL that came from data, or "#" when it would run code: only SAFE_SCHEMES, and relative ones, pass.

    Takes the content of an attribute (escaped HTML) or plain text. Browsers ignore white space and control characters
    in a scheme, and decode entities before they look at it; so does this.
    """
    if isinstance(value, Undefined):
        return value
    escaped = str(value)
    plain = _IGNORED_IN_URLS.sub("", html.unescape(escaped) if isinstance(value, Markup) else escaped)
    scheme = _SCHEME.match(plain)
    if scheme is not None and scheme[1].lower() not in SAFE_SCHEMES:
        return Markup("#") if isinstance(value, Markup) else "#"
    return value
