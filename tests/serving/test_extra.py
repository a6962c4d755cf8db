"""Whether the server is tested at all."""

import pytest

from tests.serving.conftest import MISSING


def test_the_packages_of_the_server_are_installed():
    if MISSING:
        pytest.skip(f"the server is not tested: found no {', '.join(MISSING)} (extras serve and dev)")
