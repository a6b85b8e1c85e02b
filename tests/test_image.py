"""The image: built once from the Dockerfile, and every role's program starts in it as an ordinary user."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image_builder import ImageBuilder
from tests.support import require

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]
TAG = "localhost/mailfleet:test"


@pytest.fixture(scope="module")
def builder() -> Iterator[ImageBuilder]:
    for program in ("buildah", "debootstrap"):
        require(shutil.which(program), f"{program} isn't installed (apt-get install {program})")
    require(os.geteuid() == 0, "building the base image needs root (debootstrap)")
    made = ImageBuilder(Path(tempfile.mkdtemp(prefix="mf-image-", dir="/var/tmp")))
    try:
        made.make_base()
        made.build(TAG)
        yield made
    finally:
        made.remove()


def test_the_programs_of_every_role_start_as_an_ordinary_user(builder: ImageBuilder) -> None:
    container = builder.start(TAG)
    assert "Permission-based e-mail marketing" in builder.run(container, "mailfleet", "--help")
    assert builder.run(container, "airflow", "version").splitlines()[-1].strip() == "3.3.2"
    assert builder.run(container, "id", "-u").strip() == "10001"
    made = builder.run(container, "sh", "-c", "mailfleet init && mailfleet db current && python3 -c 'import MySQLdb'")
    assert "database made at revision" in made.replace(": ", " ")
    assert "find-links" not in builder.run(container, "sh", "-c", "cat /etc/pip.conf || true")
