"""The few fields that our endpoints are sent, from either form encoding. ``middleware.BodyLimit`` limits the body."""

from collections.abc import Mapping
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

MAX_FIELDS = 20


async def read_form(request: Request) -> Mapping[str, str]:
    """Fields by name, the first of each; empty when the body is no form.

    RFC 8058 §3.2 asks for multipart/form-data or form-urlencoded; another content type is taken for the latter.
    """
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await _multipart(request)
    try:
        pairs = parse_qsl((await request.body()).decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        return {}
    return {name: value.strip() for name, value in reversed(pairs)}


async def _multipart(request: Request) -> Mapping[str, str]:
    try:
        async with request.form(max_files=0, max_fields=MAX_FIELDS) as form:
            return {name: value.strip() for name, value in reversed(form.multi_items()) if isinstance(value, str)}
    except (MultiPartException, HTTPException, FormParserError, KeyError, ValueError):
        return {}
