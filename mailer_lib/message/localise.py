"""Numbers and dates the way a recipient's language writes them: small, the same on every machine, no locale data.

``{{ contact.points|number }}``, ``{{ contact.customer_since|date }}``. The language is the recipient's ``locale``
(BCP 47) unless the template names one; one that isn't listed gets forms that can't be misread (1 234.5, 2026-11-24).
"""

from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from typing import Any

from jinja2 import pass_context
from jinja2.runtime import Context

_NARROW_SPACE = "\u202f"
SEPARATORS: Mapping[str, tuple[str, str]] = {  # language: group, decimal
    "en": (",", "."), "ja": (",", "."), "zh": (",", "."), "ko": (",", "."),
    "de": (".", ","), "es": (".", ","), "it": (".", ","), "nl": (".", ","), "pt": (".", ","), "da": (".", ","),
    "tr": (".", ","), "el": (".", ","), "id": (".", ","), "ro": (".", ","),
    "fr": (_NARROW_SPACE, ","), "sv": (_NARROW_SPACE, ","), "nb": (_NARROW_SPACE, ","), "nn": (_NARROW_SPACE, ","),
    "no": (_NARROW_SPACE, ","), "fi": (_NARROW_SPACE, ","), "pl": (_NARROW_SPACE, ","), "cs": (_NARROW_SPACE, ","),
    "uk": (_NARROW_SPACE, ","), "hu": (_NARROW_SPACE, ","),
}  # fmt: skip
DATE_FORMS: Mapping[str, str] = {
    "en": "{d.day} {month} {d.year}", "de": "{d.day}. {month} {d.year}", "fr": "{d.day} {month} {d.year}",
    "es": "{d.day} de {month} de {d.year}", "it": "{d.day} {month} {d.year}", "nl": "{d.day} {month} {d.year}",
    "sv": "{d.day} {month} {d.year}", "nb": "{d.day}. {month} {d.year}", "da": "{d.day}. {month} {d.year}",
}  # fmt: skip
MONTHS: Mapping[str, tuple[str, ...]] = {
    language: tuple(names.split())
    for language, names in {
        "en": "January February March April May June July August September October November December",
        "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
        "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
        "nl": "januari februari maart april mei juni juli augustus september oktober november december",
        "sv": "januari februari mars april maj juni juli augusti september oktober november december",
        "nb": "januar februar mars april mai juni juli august september oktober november desember",
        "da": "januar februar marts april maj juni juli august september oktober november december",
    }.items()
}


@lru_cache(maxsize=1024)  # a newsletter says the same number of points four times
def number(value: float, language: str, decimals: int | None = None) -> str:
    """``value`` grouped by thousands; as many decimals as asked for, or as it has (at most 6)."""
    group, point = SEPARATORS.get(language, (_NARROW_SPACE, "."))
    text = f"{value:,.{6 if decimals is None else decimals}f}"
    whole, _, fraction = text.partition(".")
    if decimals is None:
        fraction = fraction.rstrip("0")
    return whole.replace(",", group) + (point + fraction if fraction else "")


def long_date(value: date, language: str) -> str:
    """``24 November 2026`` in that language, or ISO 8601."""
    form = DATE_FORMS.get(language)
    return form.format(d=value, month=MONTHS[language][value.month - 1]) if form else value.isoformat()


@pass_context
def number_filter(context: Context, value: Any, decimals: int | None = None, language: str | None = None) -> Any:
    """``{{ x|number }}``, ``|number(2)``, ``|number(language="en")``; what isn't a number stays as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return number(value or 0, language or language_of(context), decimals)  # -0.0 is 0


@pass_context
def date_filter(context: Context, value: Any, language: str | None = None) -> Any:
    """``{{ x|date }}``, ``{{ x|date("en") }}`` for ISO 8601 text; anything else stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return long_date(date.fromisoformat(value[:10]), language or language_of(context))
    except ValueError:
        return value


def language_of(context: Context) -> str:
    """The recipient's language, ``en`` when none is known."""
    contact = context.get("contact")
    locale = contact.data.get("locale") if contact is not None else None
    return locale.replace("_", "-").split("-", 1)[0].lower() if isinstance(locale, str) and locale else "en"
