"""Machines rented from Hetzner Cloud, over its API (https://docs.hetzner.cloud/reference/cloud).

A server's name is unique in a project, so it is the guard against renting twice: whoever tries again after an answer
that was lost finds the machine by its name. The label ``mailfleet`` says that it is ours, ``host_key`` which SSH host
key it was given. Eight calls of the API are used, so there is no client library (docs/decisions/0905).
"""

import base64
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from mailer_lib import secret_refs
from mailer_lib.fleet.hosts import HostsError, Machine, NoMachineError, Terms
from mailer_lib.settings import Settings
from mailer_lib.terms import HostProvider

IMAGE = "debian-12"
LABEL, LABEL_VALUE = "mailfleet", "dispatch"
HOST_KEY_LABEL = "host_key"
TRIES = 5
TIMEOUT_S = 30.0
WAIT_AT_MOST_S = 30.0  # between two tries
POLL_S = 2.0
ACTION_S = 300.0
_NONE_TO_BE_HAD = ("resource_unavailable", "placement_error", "resource_limit_exceeded")


class _ApiError(Exception):
    """An answer that isn't the one asked for."""

    def __init__(self, status: int, code: str, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.wait_s = status, code, message, wait_s


class Hetzner:
    """Implements ``hosts.HostSource``."""

    kind = HostProvider.HETZNER

    def __init__(self, settings: Settings, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._settings = settings
        self._base = str(settings.hetzner_endpoint).rstrip("/")
        self._sleep = sleep

    def terms(self) -> Terms:
        kind, location = self._settings.hetzner_server_type, self._settings.hetzner_location
        found = self._call("GET", "/server_types", query={"name": kind})["server_types"]
        if not found:
            raise HostsError(f"Hetzner has no server type {kind!r} (MAILFLEET_HETZNER_SERVER_TYPE)")
        for price in found[0]["prices"]:
            if price["location"] == location:
                return Terms(float(price["price_hourly"]["gross"]) * 24)
        raise HostsError(f"Hetzner has no {kind} in {location!r} (MAILFLEET_HETZNER_LOCATION)")

    def create(self, name: str, *, helo_name: str, login_key: str) -> Machine:
        found = self._find(name)
        if found is None:
            found = self._make(name, login_key)
        machine = self._machine(found)
        if found["public_net"]["ipv4"]["dns_ptr"] != helo_name:
            pointer = {"ip": machine.address, "dns_ptr": helo_name}
            self._wait(self._call("POST", f"/servers/{machine.id}/actions/change_dns_ptr", pointer)["action"])
        return machine

    def machines(self) -> list[Machine]:
        return [self._machine(one) for one in self._list({"label_selector": f"{LABEL}={LABEL_VALUE}"})]

    def delete(self, machine_id: str) -> None:
        try:
            server = self._ask("GET", f"/servers/{machine_id}")["server"]
        except _ApiError as error:
            if error.status == 404:
                return
            raise _sentence(error) from None
        if server["labels"].get(LABEL) != LABEL_VALUE:
            raise HostsError(
                f"the machine {server['name']} isn't ours: it doesn't carry the label {LABEL}={LABEL_VALUE}"
            )
        try:
            self._wait(self._ask("DELETE", f"/servers/{machine_id}")["action"])
        except _ApiError as error:
            if error.status != 404:
                raise _sentence(error) from None

    # --- making one ---------------------------------------------------------------------------------------------------

    def _make(self, name: str, login_key: str) -> dict[str, Any]:
        private = Ed25519PrivateKey.generate()
        wanted = {
            "name": name,
            "server_type": self._settings.hetzner_server_type,
            "location": self._settings.hetzner_location,
            "image": IMAGE,
            "labels": {LABEL: LABEL_VALUE, HOST_KEY_LABEL: _label_of(private.public_key())},
            "user_data": user_data(private, login_key),
        }
        for left in reversed(range(TRIES)):
            try:
                made = self._ask("POST", "/servers", wanted, tries=1)
                self._wait(made["action"])
                return dict(made["server"])
            except _ApiError as error:
                # an answer that was lost may have been a yes, and a name that is taken is perhaps ours
                found = self._find(name) if error.status >= 500 or error.code == "uniqueness_error" else None
                if found is not None:
                    return found
                if not left or not _is_passing(error):
                    raise _sentence(error) from None
                self._sleep(_wait_s(error, TRIES - 1 - left))
        raise AssertionError("unreachable")

    def _find(self, name: str) -> dict[str, Any] | None:
        found = self._list({"name": name})
        if not found:
            return None
        if found[0]["labels"].get(LABEL) != LABEL_VALUE:
            raise HostsError(
                f"a machine {name} that isn't ours is there already; rename it, or the fleet's next server"
            )
        return found[0]

    def _machine(self, server: Mapping[str, Any]) -> Machine:
        label = server["labels"].get(HOST_KEY_LABEL, "")
        key = _key_of(label)
        if key is None:
            raise HostsError(
                f"the machine {server['name']} has lost its label {HOST_KEY_LABEL}: nobody can tell its key"
            )
        return Machine(str(server["id"]), server["name"], server["public_net"]["ipv4"]["ip"], key)

    # --- the API ------------------------------------------------------------------------------------------------------

    def _list(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page: int | None = 1
        while page is not None:
            answer = self._call("GET", "/servers", query={**query, "page": str(page), "per_page": "50"})
            found += answer["servers"]
            page = answer.get("meta", {}).get("pagination", {}).get("next_page")
        return found

    def _wait(self, action: Mapping[str, Any]) -> None:
        """Until an action of theirs is through."""
        waited_s = 0.0
        while action["status"] == "running":
            if waited_s >= ACTION_S:
                raise HostsError(
                    f"Hetzner's action {action['command']} isn't through after {ACTION_S:.0f} s; try again"
                )
            self._sleep(POLL_S)
            waited_s += POLL_S
            action = self._call("GET", f"/actions/{action['id']}")["action"]
        if action["status"] == "error":
            raise HostsError(f"Hetzner's action {action['command']} failed: {action['error']['message']}")

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            return self._ask(method, path, body, query)
        except _ApiError as error:
            raise _sentence(error) from None

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        *,
        tries: int = TRIES,
    ) -> dict[str, Any]:
        """One call, tried again while they are busy or broken."""
        for tried in range(tries):
            try:
                return self._once(method, path, body, query)
            except _ApiError as error:
                if tried == tries - 1 or not _is_passing(error):
                    raise
                self._sleep(_wait_s(error, tried))
        raise AssertionError("unreachable")

    def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str] | None
    ) -> dict[str, Any]:
        reference = self._settings.hetzner_token_ref
        assert reference is not None
        url = self._base + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        asked = urllib.request.Request(  # noqa: S310  # an endpoint of the settings: http or https
            url,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {secret_refs.resolve(self._settings, reference)}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:  # noqa: S310
                return dict(json.loads(answer.read() or b"{}"))
        except urllib.error.HTTPError as error:
            raise _error_of(error) from None
        except (OSError, ValueError) as error:
            raise _ApiError(599, "unreachable", str(getattr(error, "reason", None) or error)) from None


def user_data(host_key: Ed25519PrivateKey, login_key: str) -> str:
    """For cloud-init: the machine's host key, so that nothing is trusted at first sight, and who may log in as root."""
    text = host_key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = host_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    indented = "".join(f"    {line}\n" for line in text.splitlines())
    return (
        "#cloud-config\ndisable_root: false\nssh_pwauth: false\nssh_deletekeys: true\n"
        f"ssh_authorized_keys:\n  - {json.dumps(login_key)}\n"
        f"ssh_keys:\n  ed25519_private: |\n{indented}  ed25519_public: {json.dumps(public)}\n"
    )


def _label_of(key: Ed25519PublicKey) -> str:
    """A label holds 63 letters and digits at most: 32 bytes in base 32 are 52."""
    return base64.b32encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode().rstrip("=").lower()


def _key_of(label: str) -> str | None:
    try:
        raw = base64.b32decode(label.upper() + "=" * (-len(label) % 8))
        key = Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        return None
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _error_of(error: urllib.error.HTTPError) -> _ApiError:
    try:
        said = json.loads(error.read())["error"]
    except (ValueError, KeyError, TypeError, OSError):
        said = {}
    reset = error.headers.get("RateLimit-Reset", "")
    wait_s = float(reset) - time.time() if error.code == 429 and reset.isdigit() else None
    return _ApiError(error.code, said.get("code", ""), said.get("message", f"HTTP {error.code}"), wait_s)


def _is_passing(error: _ApiError) -> bool:
    return error.status == 429 or error.status >= 500 or error.code in ("conflict", "locked")


def _wait_s(error: _ApiError, tried: int) -> float:
    return min(WAIT_AT_MOST_S, max(1.0, error.wait_s if error.wait_s is not None else 2.0**tried))


def _sentence(error: _ApiError) -> HostsError:
    if error.code in _NONE_TO_BE_HAD:
        return NoMachineError(f"Hetzner has no machine for us now: {error.message}; try another type or location")
    if error.status == 401:
        return HostsError("Hetzner doesn't take the token (MAILFLEET_HETZNER_TOKEN_REF): is it of the right project?")
    if error.status == 429:
        return HostsError("Hetzner's API is asked too often; it is tried again with the next look")
    return HostsError(f"Hetzner's API says {error.code or error.status}: {error.message}")
