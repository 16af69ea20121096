"""The stage of TLS, with the server itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import attrs
import msgspec
import pytest

from tests.lab.bench.test_rates import measured
from trio_odin.lab.bench.certificate import NoCertificate, certificate_for
from trio_odin.lab.bench.plan import BenchPlan
from trio_odin.lab.bench.record import BenchReport, as_json
from trio_odin.lab.bench.report import tls_rows
from trio_odin.lab.bench.targets import ours
from trio_odin.net.tls_files import expires_at

PLAN = BenchPlan(
    targets=[ours(1)],
    connections=8,
    tokens=10,
    channels_per_connection=6,
    hold_seconds=0.5,
    rate=20.0,
)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
async def test_the_same_load_is_measured_without_and_with_tls() -> None:
    report, target = await measured(attrs.evolve(PLAN.only(["tls"]), tls_seconds=1.5))
    assert report.is_perfect
    plain, encrypted = target.named("tls")
    assert (plain.is_tls, encrypted.is_tls) == (False, True)
    assert plain.received > 0 < encrypted.received
    assert plain.bytes_on_wire == plain.delivery_wire_bytes
    assert 1 < encrypted.bytes_on_wire - encrypted.delivery_wire_bytes < 22.5
    assert plain.connect_us is not None
    assert encrypted.connect_us is not None
    (first, second) = tls_rows(report)
    assert (first[1], second[1]) == ("plain", "TLS")
    (again,) = msgspec.json.decode(as_json([report]), type=list[BenchReport])
    assert list(tls_rows(again)) == [first, second]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_the_files_of_the_certificate_are_gone_afterwards() -> None:
    with certificate_for("127.0.0.1") as made:
        assert expires_at(made.certificate) > 0
        assert made.key.exists()
    assert not made.key.exists()


def test_without_openssl_there_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    with pytest.raises(NoCertificate, match="openssl is not installed"), certificate_for("::1"):
        pass
    broken = tmp_path / "openssl"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(NoCertificate, match="openssl fails"), certificate_for("::1"):
        pass
