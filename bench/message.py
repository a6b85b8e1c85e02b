"""What building a message costs: `python bench/message.py [MESSAGES]`.

CPU time a message of the spring sale (30 KB MJML newsletter, 19 fields, 11 tracked links, pixel), with and without the
signature, beside bare RSA-2048 signatures of the same library in the same run: the ratio is what can be compared
between machines.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mailer_lib.message.builder import MessageBuilder  # noqa: E402
from mailer_lib.message.bundle import Bundle  # noqa: E402
from mailer_lib.message.campaign import load_campaign  # noqa: E402
from mailer_lib.message.templates import compile_campaign  # noqa: E402
from mailer_lib.shard.recipient import Recipient  # noqa: E402

ROUNDS = 5
GIVEN = ("Ann", "Änne", "Ole", "Ingrid", "José", "Mia", "Lars", "Zoë", "Per", "Kari", "François", "Jörg")
FAMILY = ("Lee", "Müller", "Hansen", "García", "O'Hara", "Nowak", "Berg", "Lindström")
CITIES = ("Bergen", "Ålesund", "Zürich", "Berlin", "Oslo", "Lyon", "Malmö", "Wien")


def spring_sale() -> Bundle:
    """The example's content as an agent gets it."""
    campaign = load_campaign(ROOT / "examples" / "spring-sale" / "campaign.yaml")
    compiled = compile_campaign(campaign)
    return Bundle(
        campaign=campaign.name,
        edition="1",
        send_id=1,
        list_name=campaign.list_name,
        list_title="Fjord & Fern News",
        sender=campaign.sender,
        reply_to=campaign.reply_to,
        dkim_domain=campaign.sending_domain,
        dkim_selector="mf1",
        return_path_domain=f"bounce.{campaign.sending_domain}",
        tracking_url="https://links.fjordfern.example",
        variants=compiled.variants,
        links=compiled.links,
        defaults=campaign.defaults,
        values=campaign.values,
        postal_address=campaign.postal_address,
    )


def people(count: int) -> list[Recipient]:
    """Recipients who differ as real ones do."""
    return [
        Recipient(
            contact_id=number,
            message_key=number.to_bytes(16, "big"),
            address_hash=bytes(16),
            address=f"person{number}@example.com",
            domain="example.com",
            provider="other",
            variant=number % 2,
            given_name=GIVEN[number % len(GIVEN)],
            family_name=FAMILY[number % len(FAMILY)],
            locale="en",
            attributes={
                "city": CITIES[number % len(CITIES)],
                "customer_since": f"20{10 + number % 16}-0{1 + number % 9}-1{number % 10}",
                "tier": ("bronze", "silver", "gold")[number % 3],
                "points": float(number * 7 % 5000),
                "favourite_category": ("Hiking", "Skiing", "Paddling")[number % 3],
                "vip": number % 10 == 0,
            },
        )
        for number in range(count)
    ]


def cpu_us(do: Callable[[Recipient], object], over: Iterable[Recipient]) -> float:
    """CPU microseconds for each."""
    items = list(over)
    start = time.process_time()
    for item in items:
        do(item)
    return (time.process_time() - start) / len(items) * 1e6


def main(count: int) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    bundle, everybody = spring_sale(), people(count)
    scheme, digest, text = padding.PKCS1v15(), hashes.SHA256(), b"x" * 900
    unsigned = MessageBuilder(bundle, dkim_key_pem=None, token_key=bytes(32))
    signed = MessageBuilder(bundle, dkim_key_pem=pem, token_key=bytes(32))
    for person in everybody[:200]:
        signed.build(person), unsigned.build(person)
    ways: dict[str, Callable[[Recipient], object]] = {
        "RSA-2048 signature alone": lambda _: key.sign(text, scheme, digest),
        "message, unsigned": unsigned.build,
        "message, signed": signed.build,
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):  # interleaved, so that a busy neighbour slows all of them
        for name, way in ways.items():
            best[name] = min(best[name], cpu_us(way, everybody))
    size = len(signed.build(dataclasses.replace(everybody[0])).data)
    share = unsigned.dynamic_share(everybody[0])
    print(
        f"{count} messages of {size / 1000:.1f} KB, {share:.1%} of the body rendered for each; best of {ROUNDS} rounds"
    )
    for name, value in best.items():
        print(f"  {name:26} {value:7.0f} µs CPU   {1e6 / value:7.0f}/s a core")
    rsa_us = best["RSA-2048 signature alone"]
    print(f"  signed, over the signature {best['message, signed'] / rsa_us:.2f} ×")
    print(f"  beside the signature       {best['message, signed'] - rsa_us:.0f} µs")
    print(f"  share of the RSA limit     {rsa_us / best['message, signed']:.0%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1500)
