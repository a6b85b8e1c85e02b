"""One object holds every setting: environment variables with the prefix ``MAILFLEET_``, else embedded defaults.

The defaults make a single machine work with nothing configured: SQLite and a storage folder below ``home``, the mail
sink on localhost. Secrets are read from the environment, or from files below ``home/keys`` (mode 0600) that
``mailfleet init`` makes once; their values never appear in a repr, a log or an error.
"""

import ipaddress
import os
import re
import secrets
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mailer_lib.identity import IdentityKey

KEY_BYTES = 32
_S3 = "s3://"
_S3_URL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.{1,2}(/|$))[^/\0]+)*/?")
_DATABASE_URLS = ("sqlite:///", "mysql+mysqldb://")


class SettingsError(ValueError):
    """A setting is wrong or missing; the sentence names it and says what to do."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="MAILFLEET_",
        env_ignore_empty=True,  # compose files pass on what nobody set as empty text
        hide_input_in_errors=True,
        extra="ignore",
        frozen=True,
    )

    home: Annotated[Path, Field(description="folder of the embedded database, keys, snapshots and jobs")] = Path("var")
    database_url: Annotated[
        SecretStr | None, Field(description="SQLAlchemy URL of the central database; SQLite below home by default")
    ] = None
    storage_dir: Annotated[
        Path | None,
        Field(description="snapshot store, or with one on S3 this machine's work folder; home/storage by default"),
    ] = None
    storage_url: Annotated[
        str | None, Field(description="snapshot store elsewhere: s3://bucket/prefix or file:///folder")
    ] = None
    storage_endpoint: Annotated[
        AnyHttpUrl | None, Field(description="URL of the S3-compatible service; AWS by default")
    ] = None
    storage_region: Annotated[
        str | None, Field(description="its region; AWS_REGION by default, or us-east-1 with an endpoint")
    ] = None
    storage_access_key: Annotated[
        SecretStr | None, Field(description="its access key; AWS_ACCESS_KEY_ID or the machine's role by default")
    ] = None
    storage_secret_key: Annotated[
        SecretStr | None, Field(validate_default=True, description="the secret that goes with it")
    ] = None
    identity_key: Annotated[SecretStr | None, Field(description="64 hex digits; home/keys/identity.key by default")] = (
        None
    )
    token_key: Annotated[SecretStr | None, Field(description="64 hex digits; home/keys/token.key by default")] = None
    ssh_key_ref: Annotated[
        str, Field(description="private key that logs in to dispatch servers: file:PATH below home, or env:NAME")
    ] = "file:keys/ssh_ed25519"
    public_url: Annotated[
        AnyHttpUrl, Field(description="where recipients reach `mailfleet serve`: links, pixel, unsubscribe")
    ] = AnyHttpUrl("http://127.0.0.1:8025")
    serve_host: Annotated[str, Field(description="address that `mailfleet serve` listens on")] = "127.0.0.1"
    serve_port: Annotated[int, Field(ge=1, le=65535, description="its port")] = 8025
    serve_behind_proxy: Annotated[
        bool, Field(description="a proxy is before it: the client's address is the last of X-Forwarded-For")
    ] = False
    sink_host: Annotated[str, Field(description="address that the development sink listens on")] = "127.0.0.1"
    sink_port: Annotated[int, Field(ge=1, le=65535, description="its first port")] = 2525
    shard_rows: Annotated[int, Field(ge=1, le=5000, description="aim for the rows of a shard")] = 2000
    grant_s: Annotated[float, Field(gt=0, le=60, description="a grant covers this much sending")] = 10.0
    breaker_replies: Annotated[
        int, Field(ge=0, le=1000, description="replies of a provider that its circuit breaker judges; 0: no breaker")
    ] = 40
    breaker_refused_share: Annotated[
        float, Field(gt=0, le=1, description="refusals among them that make it leave the provider alone")
    ] = 0.5
    dns_server: Annotated[
        str | None, Field(description="resolver that checks ask, ADDRESS or ADDRESS:PORT; the system's by default")
    ] = None
    blocklists: Annotated[
        str | None, Field(description="DNS blocklists that a verification reads, by zone, with commas between")
    ] = None
    probe_host: Annotated[
        str | None, Field(description="mail host whose port 25 a verification tries from each dispatch server")
    ] = None
    seed_address: Annotated[str | None, Field(description="where the test message of a verification is sent")] = None
    seed_maildir: Annotated[Path | None, Field(description="Maildir in which it arrives")] = None
    verified_for_days: Annotated[
        int, Field(ge=1, le=365, description="doctor wants a dispatch server verified again after so many")
    ] = 30
    job_folder_days: Annotated[
        int, Field(ge=4, le=365, description="job folders go so many days after their send is over")
    ] = 14
    approver_must_differ: Annotated[bool, Field(description="who launches a send can't approve it")] = False
    scale_automatic: Annotated[
        bool, Field(description="what the fleet_scale DAG decides is done without asking anybody")
    ] = False
    scale_every_min: Annotated[
        int, Field(ge=1, le=1440, description="minutes between two looks of the fleet_scale and fleet_health DAGs")
    ] = 5
    scale_finish_within_h: Annotated[
        float | None, Field(gt=0, description="wished length of a send in hours; its expires_at alone by default")
    ] = None
    scale_confirm_s: Annotated[
        int, Field(ge=0, le=86_400, description="a send must be late for this long before anything is added")
    ] = 240
    scale_cooldown_s: Annotated[
        int, Field(ge=0, le=86_400, description="after a change of a sending pool, the next comes no sooner")
    ] = 900
    scale_warm_lead_s: Annotated[
        int,
        Field(ge=0, le=86_400, description="from a decision to the first message of a warm standby, with its approval"),
    ] = 120
    scale_cold_lead_s: Annotated[
        int, Field(ge=0, le=86_400, description="the same of a standby that must be provisioned and verified first")
    ] = 600
    scale_rent_lead_s: Annotated[int, Field(ge=0, le=86_400, description="the same of a machine that is rented")] = 900
    scale_max_servers: Annotated[
        int, Field(ge=1, le=1000, description="servers in service of one sending pool at most")
    ] = 10
    scale_budget_per_day: Annotated[
        float, Field(ge=0, description="what rented machines may cost a day, all together; 0: none is rented")
    ] = 0.0
    scale_idle_days: Annotated[int, Field(ge=1, le=365, description="a server idle for so many days is drained")] = 14
    scale_keep_servers: Annotated[
        int, Field(ge=1, le=1000, description="servers in service that a sending pool keeps in any case")
    ] = 1
    notify_url_ref: Annotated[
        str | None, Field(description="who is told when a server turns sick: env:NAME or file:PATH of a URL")
    ] = None
    hetzner_token_ref: Annotated[
        str | None, Field(description="where the token of Hetzner Cloud is: env:NAME or file:PATH; no renting without")
    ] = None
    hetzner_endpoint: Annotated[AnyHttpUrl, Field(description="its API")] = AnyHttpUrl("https://api.hetzner.cloud/v1")
    hetzner_server_type: Annotated[str, Field(description="kind of machine that is rented")] = "cx23"
    hetzner_location: Annotated[str, Field(description="where")] = "fsn1"
    rented_domain: Annotated[
        str | None, Field(description="rented servers are called NAME.DOMAIN in EHLO and PTR; none is rented without")
    ] = None
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"], Field(description="how much commands log, on stderr")
    ] = "INFO"

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @field_validator("database_url", mode="after")
    @classmethod
    def _known_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(_DATABASE_URLS):
            raise ValueError(
                "must begin with sqlite:/// and a path, or be mysql+mysqldb://USER:PASSWORD@HOST/NAME "
                "(MySQL and MariaDB, through mysqlclient)"
            )
        return value

    @field_validator("dns_server", mode="after")
    @classmethod
    def _is_a_resolver(cls, value: str | None) -> str | None:
        if value is not None:
            address_and_port(value)
        return value

    @field_validator("storage_url", mode="after")
    @classmethod
    def _known_store(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or _S3_URL.fullmatch(value):
            return value
        if not value.startswith("file:///"):
            raise ValueError(
                "must be s3://BUCKET/PREFIX (the prefix may be left out; no empty, . or .. parts) or file:///FOLDER"
            )
        if info.data.get("storage_dir") is not None:
            raise ValueError("names a folder, and so does MAILFLEET_STORAGE_DIR; unset one of them")
        return value

    @field_validator("storage_endpoint", mode="after")
    @classmethod
    def _is_an_endpoint(cls, value: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if value is not None and (value.path not in (None, "/") or value.query or value.fragment or value.username):
            raise ValueError("must be http(s)://HOST:PORT, with nothing after it; keys have settings of their own")
        return value

    @field_validator("storage_secret_key", mode="after")
    @classmethod
    def _both_keys(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if (value is None) != (info.data.get("storage_access_key") is None):
            raise ValueError("goes with MAILFLEET_STORAGE_ACCESS_KEY; set both, or neither")
        return value

    @field_validator("public_url", mode="after")
    @classmethod
    def _is_a_base(cls, value: AnyHttpUrl) -> AnyHttpUrl:
        if value.query or value.fragment:
            raise ValueError("must be the base of links, without ? and #")
        return value

    @field_validator("identity_key", "token_key", mode="after")
    @classmethod
    def _key_is_hex(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                size = len(bytes.fromhex(value.get_secret_value()))
            except ValueError:
                raise ValueError("must be 64 hexadecimal digits") from None
            if size != KEY_BYTES:
                raise ValueError("must be 64 hexadecimal digits")
        return value

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the central database."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home / 'mailfleet.db'}"

    @property
    def storage(self) -> Path:
        """The snapshot store when it is a folder. With a store on S3: this machine's work folder, where snapshots are
        built and ledgers grow, and where what isn't shared stays (rejects, events)."""
        if self.storage_url is not None and self.bucket is None:
            return Path(unquote(urlsplit(self.storage_url).path)).absolute()
        return self.storage_dir.expanduser().absolute() if self.storage_dir else self.home / "storage"

    @property
    def bucket(self) -> str | None:
        """``bucket`` or ``bucket/prefix`` of a store on S3; None: it is the folder ``storage``.

        ``shard/store.py`` opens either."""
        if self.storage_url is None or not self.storage_url.startswith(_S3):
            return None
        return self.storage_url.removeprefix(_S3).rstrip("/")

    @property
    def jobs_dir(self) -> Path:
        """Job folders of the channel ``local``."""
        return self.home / "jobs"

    @property
    def keys_dir(self) -> Path:
        return self.home / "keys"

    def identity(self) -> IdentityKey:
        """The identity key.

        Raises:
            SettingsError: there is none yet.
        """
        return IdentityKey(self._key("identity", self.identity_key))

    def tokens(self) -> bytes:
        """The 32 bytes that sign tokens.

        Raises:
            SettingsError: there are none yet.
        """
        return self._key("token", self.token_key)

    def _key(self, name: str, configured: SecretStr | None) -> bytes:
        if configured is not None:
            return bytes.fromhex(configured.get_secret_value())
        path = self.keys_dir / f"{name}.key"
        try:
            key = bytes.fromhex(path.read_text().strip())
        except FileNotFoundError:
            raise SettingsError(
                f"there is no {name} key: set MAILFLEET_{name.upper()}_KEY, restore {path} from the backup, or run "
                "`mailfleet init` on a new installation"
            ) from None
        except ValueError:
            raise SettingsError(f"{path} doesn't hold 64 hexadecimal digits; restore it from the backup") from None
        if len(key) != KEY_BYTES:
            raise SettingsError(f"{path} doesn't hold 64 hexadecimal digits; restore it from the backup")
        return key


def address_and_port(text: str, port: int = 53) -> tuple[str, int]:
    """``192.0.2.1``, ``192.0.2.1:5353``, ``2001:db8::1`` or ``[2001:db8::1]:5353``.

    Raises:
        ValueError: it is written otherwise.
    """
    try:
        return str(ipaddress.ip_address(text.strip("[]"))), port
    except ValueError:
        pass
    host, _, number = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        address = None
    if address is None or not (number.isascii() and number.isdecimal() and 1 <= int(number) <= 65535):
        raise ValueError("must be an IP address, or one with a port: 192.0.2.1:53 or [2001:db8::1]:53")
    return str(address), int(number)


def make_key(path: Path) -> bool:
    """Write a fresh 32-byte key as hex, mode 0600, unless the file exists. Returns whether it was made."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(KEY_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return True


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """The settings of this process.

    Raises:
        SettingsError: a sentence for each wrong value, with the variable's name.
    """
    try:
        return Settings()
    except ValidationError as error:
        lines = [
            f"MAILFLEET_{'_'.join(str(p) for p in e['loc']).upper()}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_input=False)  # it may be a secret
        ]
        raise SettingsError("wrong settings:\n  " + "\n  ".join(lines)) from None
