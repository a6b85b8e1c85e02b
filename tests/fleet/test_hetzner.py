"""Machines rented over an API: none twice, none of others deleted, and trouble said in a sentence."""

from collections.abc import Iterator

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from mailer_lib.fleet.hetzner import Hetzner
from mailer_lib.fleet.hosts import HostsError, Machine, NoMachineError, source_of
from mailer_lib.settings import Settings
from mailer_lib.terms import HostProvider
from tests.fleet.hetzner_server import TOKEN, Cloud, cloud, error

LOGIN = "ssh-ed25519 AAAA mailfleet"


@pytest.fixture
def there() -> Iterator[Cloud]:
    with cloud() as running:
        yield running


class Rented(Hetzner):
    """Notes how long it would have waited."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, sleep=lambda seconds: self.waits.append(seconds))
        self.waits: list[float] = []


@pytest.fixture
def hosts(there: Cloud, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Rented:
    monkeypatch.setenv("THE_TOKEN", TOKEN)
    more = {"hetzner_endpoint": there.url, "hetzner_token_ref": "env:THE_TOKEN", "rented_domain": "fjordfern.example"}
    return Rented(settings.model_validate({**settings.model_dump(), **more}))


def make(hosts: Hetzner, name: str = "main-7") -> Machine:
    return hosts.create(name, helo_name=f"{name}.fjordfern.example", login_key=LOGIN)


def test_a_machine_comes_with_its_address_its_name_in_dns_and_a_host_key_of_ours(there: Cloud, hosts: Rented) -> None:
    machine = make(hosts)
    assert (machine.name, machine.address) == ("main-7", "192.0.2.1")
    assert there.servers[1]["public_net"]["ipv4"]["dns_ptr"] == "main-7.fjordfern.example"
    config = yaml.safe_load(there.created[0]["user_data"])
    given = load_ssh_private_key(config["ssh_keys"]["ed25519_private"].encode(), None).public_key()
    assert machine.host_key == given.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    assert config["ssh_keys"]["ed25519_public"] == machine.host_key
    assert config["ssh_authorized_keys"] == [LOGIN]
    assert all(len(value) <= 63 for value in there.created[0]["labels"].values())


def test_asking_again_for_a_machine_finds_the_first(there: Cloud, hosts: Rented) -> None:
    assert make(hosts) == make(hosts) == hosts.machines()[0]
    assert len(there.servers) == 1


def test_a_machine_whose_making_was_answered_with_an_error_is_not_made_twice(there: Cloud, hosts: Rented) -> None:
    there.lost = 1
    machine = make(hosts)
    assert len(there.servers) == len(there.created) == 1
    assert machine.id == "1"


@pytest.mark.parametrize("trouble", [error(429, "rate_limit_exceeded"), error(503, "unavailable"), error(500, "x")])
def test_a_busy_api_is_asked_again_after_a_while(
    there: Cloud, hosts: Rented, trouble: tuple[int, dict[str, object]]
) -> None:
    there.trouble = [trouble, trouble]
    assert hosts.terms().cost_per_day == pytest.approx(0.144)
    assert hosts.waits == [1.0, 2.0]


def test_an_api_that_stays_broken_is_given_up(there: Cloud, hosts: Rented) -> None:
    there.trouble = [error(503, "unavailable", "maintenance")] * 20
    with pytest.raises(HostsError, match="maintenance"):
        hosts.terms()
    assert len(there.calls) == 5


@pytest.mark.parametrize("code", ["resource_unavailable", "placement_error", "resource_limit_exceeded"])
def test_when_there_is_no_machine_it_says_so_and_does_not_insist(there: Cloud, hosts: Rented, code: str) -> None:
    there.trouble = [(200, {"servers": []}), error(412, code, "none left in fsn1")]
    with pytest.raises(NoMachineError, match="none left in fsn1"):
        make(hosts)
    assert (there.servers, hosts.waits) == ({}, [])


def test_an_action_that_takes_its_time_is_waited_for(there: Cloud, hosts: Rented) -> None:
    there.action_polls = 3
    make(hosts)
    assert len(hosts.waits) == 6  # making it, and naming it


def test_machines_of_others_are_neither_listed_nor_taken_nor_deleted(there: Cloud, hosts: Rented) -> None:
    other = there.put("shop", role="database")
    assert hosts.machines() == []
    with pytest.raises(HostsError, match="isn't ours"):
        make(hosts, "shop")
    with pytest.raises(HostsError, match="isn't ours"):
        hosts.delete(str(other))
    assert other in there.servers


def test_a_machine_of_ours_is_given_back_once(there: Cloud, hosts: Rented) -> None:
    machine = make(hosts)
    hosts.delete(machine.id)
    assert there.servers == {}
    hosts.delete(machine.id)


def test_all_pages_are_read(there: Cloud, hosts: Rented) -> None:
    there.page_size = 2
    names = {make(hosts, f"main-{number}").name for number in range(5)}
    assert {machine.name for machine in hosts.machines()} == names


def test_a_wrong_token_is_said_without_showing_it(there: Cloud, hosts: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_TOKEN", "not-the-right-one")
    with pytest.raises(HostsError, match="doesn't take the token") as caught:
        hosts.terms()
    assert "not-the-right-one" not in str(caught.value)


def test_nothing_is_rented_unless_token_and_domain_are_given(settings: Settings, hosts: Rented) -> None:
    assert source_of(settings) is None
    given = source_of(hosts._settings)
    assert given is not None
    assert given.kind is HostProvider.HETZNER
    assert source_of(hosts._settings.model_copy(update={"rented_domain": None})) is None
