"""The address of a send's preview page (``/p/<token>``), for whoever approves it."""

from mailer_lib import tokens
from mailer_lib.settings import Settings
from mailer_lib.tokens import Token, TokenKind

_NOBODY = bytes(16)  # a preview is nobody's message


def preview_link(settings: Settings, send_id: int, contact_id: int = 0) -> str:
    """URL at ``settings.public_url``; ``contact_id`` chooses whose values are shown, 0 the first of the snapshot.

    Raises:
        SettingsError: there is no token key.
    """
    key = tokens.signing_key(settings.tokens(), TokenKind.PREVIEW, send_id)
    token = tokens.sign(key, Token(TokenKind.PREVIEW, send_id, contact_id, _NOBODY))
    return f"{str(settings.public_url).rstrip('/')}/p/{token}"
