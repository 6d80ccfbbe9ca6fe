"""The tests of limits for each of its storages, on ours; runs beside them."""

from __future__ import annotations

import pytest

from state_server.integrations.limits import StateServerStorage
from tests import test_storage

TestStateServerStorage = test_storage.TestConcreteStorages
TestStateServerStorage.pytestmark = [
    pytest.mark.parametrize(
        ("uri", "args", "expected_instance", "fixture"),
        [("stateserver://", {}, StateServerStorage, None)],
    )
]
