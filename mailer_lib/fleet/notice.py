"""A sentence to whoever looks after the fleet: POSTed as ``{"text": …}``, which chat services take as they are."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from mailer_lib import secret_refs
from mailer_lib.settings import Settings

TRIES = 3
TIMEOUT_S = 10.0


class NoticeError(RuntimeError):
    """Nobody took it; the sentence says why, without the address that it was sent to: that is a secret."""


def send_notice(settings: Settings, text: str, *, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Whether there is somebody to tell (``notify_url_ref``), and so was told.

    Raises:
        NoticeError: three tries failed.
        SecretRefError: the reference points to nothing.
    """
    if settings.notify_url_ref is None:
        return False
    url = secret_refs.resolve(settings, settings.notify_url_ref)
    if not url.startswith(("https://", "http://")):
        raise NoticeError(f"{settings.notify_url_ref} (MAILFLEET_NOTIFY_URL_REF) doesn't hold an http(s) address")
    asked = urllib.request.Request(  # noqa: S310  # checked above
        url, data=json.dumps({"text": text}).encode(), headers={"Content-Type": "application/json"}
    )
    problem = ""
    for tried in range(TRIES):
        if tried:
            sleep(2.0**tried)
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT_S):  # noqa: S310
                return True
        except urllib.error.HTTPError as error:
            problem = f"it answers {error.code}"
        except OSError as error:
            problem = f"it can't be reached: {getattr(error, 'reason', None) or error}"
    raise NoticeError(f"the notice wasn't taken: {problem}")
