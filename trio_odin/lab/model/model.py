"""The cost of a workload: from the costs of the parts to CPU, memory, instances, money. Pure.

    Demand × Costs  ──►  cores, MiB           of a number of connections in one place
    … on an Instance ──►  the most it can hold ──►  number of instances, and their cost

Units: MiB, and KiB as its 1024th. The plan uses MB for both its 7,168 and its 0.7 a connection, so
its 10,240 connections are the same in either unit; here its 0.7 is 716.8 KiB.

Events that come together share a wake-up of the process, so an event costs less at higher rates:
without a subscriber 630 µs at 300 a second, 290 at 1,000 and 113 at 3,000 on one day, 267, 137 and
93 on another. Both follow `joined_us + publication_us / (1 + rate / joined_rate)`.

Deliberately absent: latency, which the events alone predict only within a factor of two to four;
the kernel's memory for sockets; frames that are joined at high rates. A delivery then costs less,
so with subscribers, at a hundred events a second and more, the CPU here is too high, never too
low.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import attrs

from trio_odin.lab.model.wire import FIRST_WIRE, Wire
from trio_odin.overload.process import files_needed

KIB: Final = 1024
# More than any demand: it stands for "not bound by this".
ENDLESS: Final = 100_000_000
_MONTH_SECONDS = 365 / 12 * 86_400
# The cost of an event is known to fall up to here; at higher rates it is taken as constant.
JOINED_MAX_RATE: Final = 3000.0
# Above it the connections, a few KiB each, do not fit into the CPU's caches.
_CACHED_CONNECTIONS = 1000


@attrs.frozen(kw_only=True)
class Costs:
    """The costs of a server's parts, measured or claimed.

    Args:
        base_mib: resident memory of a process without connections.
        connection_kib: memory that a connection adds, after it has received events.
        delivery_us: CPU of one envelope to one connection, among up to 1,000 of them.
        doubling_us: CPU that each doubling of the connections above 1,000 adds to a delivery: their
            state has left the CPU's caches by the time of the next event.
        joined_us: CPU of taking one event of many that come together, for any subscribers; each
            process takes each event.
        publication_us: additional CPU of an event that comes alone.
        joined_rate: events a second at which half of that is added; None: all of it always is.
        connection_us_per_second: CPU of a connection by time, such as its keepalive.
        base_cores: CPU of an idle process.
        connect_us: CPU of one connect, handshake and subscription; None if unknown.
        reconnect_us: time of the loop for the same in a storm, with the connections that end and
            the caches that are cold; None if unknown.
        nats_failover_seconds: the longest that events have waited when a node of a NATS cluster
            was killed; None if unknown.
        max_rate, max_connections, max_deliveries: the most events a second, connections, and
            deliveries a second in the measurement, not all at once; None if unknown. Beyond them
            the figures are extrapolated.
        uses_all_cores: one process uses every core; a trio process uses one.
        source: source of the figures, for people.
        date: of the measurement, YYYY-MM-DD.
        wire: bytes of the encodings, and the CPU that these and batches add.
    """

    connection_kib: float
    delivery_us: float
    base_mib: float = 0.0
    doubling_us: float = 0.0
    joined_us: float = 0.0
    publication_us: float = 0.0
    joined_rate: float | None = None
    connection_us_per_second: float = 0.0
    base_cores: float = 0.0
    connect_us: float | None = None
    reconnect_us: float | None = None
    nats_failover_seconds: float | None = None
    max_rate: float | None = None
    max_connections: int | None = None
    max_deliveries: float | None = None
    uses_all_cores: bool = False
    source: str = ""
    date: str = ""
    wire: Wire = FIRST_WIRE

    def delivery_us_among(self, connections: int) -> float:
        """CPU of one delivery among so many connections."""
        return self.delivery_us + self.doubling_us * doublings(connections)

    def event_us(self, rate: float) -> float:
        """CPU of taking one event at this rate."""
        together = min(rate, JOINED_MAX_RATE) / (self.joined_rate or math.inf)
        return self.joined_us + self.publication_us / (1 + together)

    def cores(
        self, connections: int, publications: float, deliveries: float, *, processes: int = 1
    ) -> float:
        """CPU by time; publications and deliveries are per second."""
        us = (
            connections * self.connection_us_per_second
            + publications * self.event_us(publications) * processes
            + deliveries * self.delivery_us_among(connections)
        )
        return self.base_cores * processes + us / 1e6

    def cores_of(self, demand: Demand, *, processes: int = 1) -> float:
        """CPU by time of a demand: that of its writes, and of its batches and its encoding."""
        writes = demand.writes_per_second
        events = demand.deliveries_per_second if demand.every_ms else 0.0
        cores = self.cores(demand.users, demand.rate, writes, processes=processes)
        return cores + self.wire.added_cores(demand.encoding, writes, events)

    def memory_mib(self, connections: int, *, processes: int = 1) -> float:
        """Resident memory of the processes, without the kernel's part."""
        return self.base_mib * processes + connections * self.connection_kib / KIB


def doublings(connections: int) -> float:
    """The number of doublings from 1,000 to `connections`; 0 for fewer."""
    return math.log2(max(1.0, connections / _CACHED_CONNECTIONS))


# "0.7 MB/conn" and "0.0000365 cores per write": the plan's "Current State Analysis" of its Go
# server. It has no other costs.
PLAN_COSTS: Final = Costs(
    connection_kib=0.7 * KIB,
    delivery_us=36.5,
    uses_all_cores=True,
    source="the plan",
    date="2025-10-11",
)


@attrs.frozen(kw_only=True)
class Demand:
    """The demand of the users.

    Args:
        users: each is one connection.
        home_share: share of users with the home page open, which holds `home_tokens` channels;
            each of the others holds one.
        tokens: number of tokens, over which the events are spread evenly.
        rate: events a second over all tokens.
        payload_bytes: size of an event, as it is published.
        every_ms: the users ask for at most one update of a channel in so many milliseconds; 0: for
            every event.
        encoding: of the events on the wire.

    Raises:
        ValueError: the home page shows more tokens than there are.
    """

    users: int = 10_000
    home_share: float = 0.8
    home_tokens: int = 30
    tokens: int = 200
    rate: float = 12.0
    payload_bytes: int = 200
    every_ms: int = 0
    encoding: str = "plain"

    def __attrs_post_init__(self) -> None:
        if self.home_tokens > self.tokens:
            raise ValueError(f"{self.home_tokens} home tokens of {self.tokens} tokens")

    def of(self, users: int) -> Demand:
        """The same demand with this number of users."""
        return attrs.evolve(self, users=users)

    @property
    def mean_subscriptions(self) -> float:
        """Channels that a user holds, on average."""
        return self.home_share * self.home_tokens + (1 - self.home_share)

    @property
    def subscribers_per_token(self) -> float:
        """Connections that receive an event, on average."""
        return self.users * self.mean_subscriptions / self.tokens

    @property
    def writes_per_second(self) -> float:
        """Messages a second to all users: the plan's writes. With a rate, ticks with any event."""
        if not self.every_ms:
            return self.rate * self.subscribers_per_token
        return sum(users * self._happens(channels) for users, channels in self._users())

    @property
    def deliveries_per_second(self) -> float:
        """Events a second to all users. With a rate, the newest of each channel at each tick."""
        if not self.every_ms:
            return self.writes_per_second
        return sum(users * channels * self._happens(1) for users, channels in self._users())

    def _users(self) -> tuple[tuple[float, int], tuple[float, int]]:
        """The users of the home page and the others, and the channels of each."""
        at_home = self.users * self.home_share
        return (at_home, self.home_tokens), (self.users - at_home, 1)

    def _happens(self, channels: int) -> float:
        """Ticks a second at which any of so many channels has changed, by Poisson's law."""
        seconds = self.every_ms / 1000
        return -math.expm1(-self.rate / self.tokens * channels * seconds) / seconds

    def bytes_per_second(self, wire: Wire) -> float:
        """Bytes a second on the network, towards the users.

        The envelope is trio-odin's, its numbers in their fourth and seventh digit, in TLS; each TCP
        segment has 52 bytes of headers. Acknowledgements and keepalive are not included.
        """
        writes = self.writes_per_second
        if not self.every_ms:
            return wire.bytes_of_singles(self.encoding, self.payload_bytes, writes)
        events = self.deliveries_per_second
        return wire.bytes_of_batches(self.encoding, self.payload_bytes, writes, events)

    def bytes_per_month(self, wire: Wire) -> float:
        """The same in a month of 365 / 12 days."""
        return self.bytes_per_second(wire) * _MONTH_SECONDS


@attrs.frozen(kw_only=True)
class Instance:
    """A kind of machine, and the server's share of it.

    Args:
        vcpus: sustained number; `burst_vcpus`: for a while, None if it is not higher.
        egress_gbit: greatest egress a second, in 10⁹ bits; None if unknown.
        cpu_share, memory_share: shares that the system and the shipping of logs leave.
        file_limit: open files of one process.
    """

    name: str
    vcpus: float
    memory_mib: float
    monthly_usd: float
    burst_vcpus: float | None = None
    egress_gbit: float | None = None
    cpu_share: float = 0.95
    memory_share: float = 0.875
    file_limit: int = 200_000

    @property
    def cpu_limit(self) -> float:
        """Cores for the server: the plan's 1.9 of 2."""
        return self.vcpus * self.cpu_share

    @property
    def memory_limit_mib(self) -> float:
        """Memory for the server: the plan's 7,168 of 8,192."""
        return self.memory_mib * self.memory_share


@attrs.frozen(kw_only=True)
class Forecast:
    """The forecast of a demand on one kind of machine.

    Args:
        max_by_memory, max_by_cpu, max_by_files, max_by_network: connections that one
            instance can hold; 100 million if this does not bind it.
        max_connections: the lowest of these; `bound_by` names it: "memory", "CPU", "open files" or
            "network".
        instances: number that the users need, spread evenly; None if no number is enough, as not
            even one connection is within the bound.
        monthly_usd: cost of all instances.
        connections: on each instance; all users if no number is enough. The following are per
            instance, too.
        writes_per_second: messages with events: deliveries, or batches.
        delivery_us: CPU of one delivery, among so many connections.
        usable_cores: part of the limit that the processes can use; `target_cores`: may use.
        cpu_percent: of the limit, as the server itself reports it.
        memory_mib: resident.
    """

    max_by_memory: int
    max_by_cpu: int
    max_by_files: int
    max_by_network: int
    max_connections: int
    bound_by: str
    instances: int | None
    monthly_usd: float | None
    connections: int
    writes_per_second: float
    delivery_us: float
    usable_cores: float
    target_cores: float
    cores: float
    cpu_percent: float
    memory_mib: float


@attrs.frozen
class _Place:
    """One instance with its processes, and the cost of connections there.

    The kernel spreads connections unevenly, and one process uses at most one core. So the limit is
    either the work of all processes on all cores, or that of the fullest process on its core.
    """

    demand: Demand
    costs: Costs
    instance: Instance
    workers: int

    @property
    def processes(self) -> int:
        return 1 if self.costs.uses_all_cores else self.workers

    @property
    def usable_cores(self) -> float:
        return min(self.instance.cpu_limit, self.processes * self._process_cores)

    @property
    def _process_cores(self) -> float:
        """The cores that one process can use."""
        limit = self.instance.cpu_limit
        return limit if self.costs.uses_all_cores else min(limit, 1.0)

    def _fullest(self, connections: int) -> int:
        """The connections of the fullest process, by the rule that the limit of files also uses."""
        return files_needed(connections, self.processes) - files_needed(0, self.processes)

    def cores(self, connections: int) -> float:
        return self.costs.cores_of(self.demand.of(connections), processes=self.processes)

    def _fullest_cores(self, connections: int) -> float:
        alone = self.costs.cores(0, self.demand.rate, 0)
        if not connections:
            return alone
        share = self._fullest(connections) / connections
        return alone + (self.cores(connections) - alone * self.processes) * share

    def busy_share(self, connections: int) -> float:
        """The busy share of time: of all usable cores or of the fullest process, the higher one."""
        return max(
            self.cores(connections) / self.usable_cores,
            self._fullest_cores(connections) / self._process_cores,
        )

    def memory_mib(self, connections: int) -> float:
        return self.costs.memory_mib(connections, processes=self.processes)

    def files(self, connections: int) -> int:
        return files_needed(connections, self.processes)

    def egress_gbit(self, connections: int) -> float:
        return self.demand.of(connections).bytes_per_second(self.costs.wire) * 8 / 1e9


def forecast(
    demand: Demand,
    costs: Costs,
    instance: Instance,
    *,
    workers: int = 1,
    target_cpu_percent: float = 75.0,
) -> Forecast:
    """Forecast the demand on one kind of machine.

    Args:
        demand: of all users.
        costs: of the parts.
        instance: the kind of all machines.
        workers: processes on each machine; each uses at most one core.
        target_cpu_percent: share of the usable cores, and of the fullest process's core, that may
            be used: the plan's threshold.
    """
    place = _Place(demand, costs, instance, workers)
    target_cores = place.usable_cores * target_cpu_percent / 100
    egress_limit = math.inf if instance.egress_gbit is None else instance.egress_gbit
    bounds = {
        "memory": _most(lambda n: place.memory_mib(n) <= _at_most(instance.memory_limit_mib)),
        "CPU": _most(lambda n: place.busy_share(n) <= _at_most(target_cpu_percent / 100)),
        "open files": _most(lambda n: place.files(n) <= instance.file_limit),
        "network": _most(lambda n: place.egress_gbit(n) <= _at_most(egress_limit)),
    }
    bound_by = min(bounds, key=bounds.__getitem__)
    most = bounds[bound_by]
    instances = math.ceil(demand.users / most) if most else None
    connections = math.ceil(demand.users / instances) if instances else demand.users
    cores = place.cores(connections)
    return Forecast(
        max_by_memory=bounds["memory"],
        max_by_cpu=bounds["CPU"],
        max_by_files=bounds["open files"],
        max_by_network=bounds["network"],
        max_connections=most,
        bound_by=bound_by,
        instances=instances,
        monthly_usd=instances * instance.monthly_usd if instances else None,
        connections=connections,
        writes_per_second=demand.of(connections).writes_per_second,
        delivery_us=costs.delivery_us_among(connections),
        usable_cores=place.usable_cores,
        target_cores=target_cores,
        cores=cores,
        cpu_percent=cores / instance.cpu_limit * 100,
        memory_mib=place.memory_mib(connections),
    )


def _at_most(limit: float) -> float:
    # 10,240 × 0.7 is 7,168; in floating point it may be slightly more.
    return limit * (1 + 1e-12)


def _most(fits: Callable[[int], bool]) -> int:
    """The most connections that fit, 0 to `ENDLESS`; if some do not fit, more do not either."""
    low, high = 0, ENDLESS + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
