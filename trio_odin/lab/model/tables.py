"""The figures that come with the project: prices of machines, and the last measured costs."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import attrs
import msgspec

from trio_odin.lab.model.bill import Balancer, EgressTier, Tariff
from trio_odin.lab.model.model import Costs, Instance

_PACKAGE = files("trio_odin.lab.model")
_COSTS_HEAD = "# What the parts of the server cost, as measured last; units are in the names.\n"


@attrs.frozen(kw_only=True)
class Prices:
    """Machines with prices, and the dates of the prices.

    Args:
        date: of the prices of machines; `network_date` of all others.
    """

    date: str
    currency: str
    source: str
    network_date: str
    tariff: Tariff

    @property
    def machines(self) -> dict[str, Instance]:
        """The machines by name."""
        return self.tariff.machines

    @property
    def described(self) -> str:
        """Source and date, in words."""
        return (
            f"{self.currency}; machines: {self.source}, {self.date}; balancer and traffic: "
            f"Google's list, {self.network_date}"
        )


def read_prices(file: Path | Traversable = _PACKAGE / "prices.toml") -> Prices:
    """Read the prices from a file such as the project's own `prices.toml`."""
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    shares = {name: content[name] for name in ("cpu_share", "memory_share", "file_limit")}
    machines = [msgspec.convert(shares | entry, Instance) for entry in content["machines"]]
    return Prices(
        date=content["date"],
        currency=content["currency"],
        source=content["source"],
        network_date=content["network_date"],
        tariff=Tariff(
            machines={machine.name: machine for machine in machines},
            egress=msgspec.convert(content["egress"], list[EgressTier]),
            balancer=msgspec.convert(content["balancer"], Balancer),
            between_regions_usd_per_gib=content["between_regions"]["usd_per_gib"],
        ),
    )


def read_costs(file: Path | Traversable = _PACKAGE / "costs.toml") -> Costs | None:
    """Read the last measured costs, from the project's own `costs.toml`; None without one."""
    if not file.is_file():
        return None
    return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Costs)


def write_costs(path: Path, costs: Costs) -> None:
    """Write costs in the format of `read_costs`, with 4 digits."""
    path.write_text(_COSTS_HEAD + "".join(_table("", attrs.asdict(costs))), encoding="utf-8")


def _table(name: str, values: dict[str, Any]) -> Iterator[str]:
    """The lines of a table of TOML, and of those in it."""
    if name:
        yield f"\n[{name}]\n"
    for key, value in values.items():
        if value is not None and not isinstance(value, dict):
            yield f"{key} = {_toml(value)}\n"
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _table(f"{name}.{key}" if name else key, value)


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return json.dumps(float(f"{value:.4g}"))
    # Strings and booleans of JSON are strings and booleans of TOML.
    return json.dumps(value, ensure_ascii=False)
