"""Many users in several regions: machines, NATS, the loss of any part, and money. Pure.

    publishers ──► region 1: NATS × 3 ──► processes ──► users
                       │ each event once
                       ├──────────────► region 2: NATS × 3 ──► processes ──► users
                       └──────────────► region 3: …

Nodes share nothing but NATS, so a region is a number of equal machines, and a load balancer for
the choice. The stream of events is in the first region, with three replicas; every other region has
a mirror of it, so that an event crosses between regions once, not once for each process.

Every region has enough machines to lose some (`spare`). Whether the users of a lost region find
room in the others is computed, and what that room would cost; with `survives_region` it is there.

Deliberately absent: the CPU of nats-server and of a proxy, which were not measured; latency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Final

import attrs
import msgspec

from trio_odin.client.items import Options
from trio_odin.drain import RECONNECTS_PER_SECOND, plan_drain
from trio_odin.lab.model.bill import GIB, Egress, Item, Tariff, egress, egress_usd
from trio_odin.lab.model.model import Costs, Demand, Forecast, Instance, forecast
from trio_odin.lab.model.storm import Calm, Storm, simulate
from trio_odin.net.segments import with_headers

NATS_NODES: Final = 3
"""Of a cluster: the fewest of which one may be lost."""
SUBSCRIPTIONS: Final = 2
"""Of a process that serves: answers to its requests, and its consumer's messages."""
REGIONS_MAX: Final = 20
_MONTH_SECONDS: Final = 365 / 12 * 86_400
# A stream and its mirror of newest events, each on all three nodes.
_STREAMS = 2
_NATS_MACHINE, _MONITOR_MACHINE = "e2-small", "e2-small"

_OPTIONS = Options()
# A client that hears nothing asks after a heartbeat, and waits for the answer.
_SILENT_SECONDS = (
    _OPTIONS.pong_ms / 1000,
    (_OPTIONS.heartbeat_ms + _OPTIONS.pong_ms) / 1000,
)
_DIAL_SECONDS = _OPTIONS.dial_ms / 1000
# What a client waits after a close with 1001; `SOON_MS` of the client libraries.
_SOON_SECONDS = 1.0


@attrs.frozen(kw_only=True)
class Common:
    """What is the same for all regions.

    Args:
        costs: of the parts of a server.
        instance: the kind of machine of the servers.
        tariff: the prices of everything else.
        workers: processes of each machine.
        target_cpu_percent: how much of the usable cores to use at most.
        spare: machines of a region that may be lost.
        survives_region: whether the others have room for the users of a lost region.
        accepts_per_second: `WS_ACCEPT_RATE`.
        drain_seconds: `WS_DRAIN_SECONDS`.
    """

    costs: Costs
    instance: Instance
    tariff: Tariff
    workers: int = 1
    target_cpu_percent: float = 75.0
    spare: int = 1
    survives_region: bool = False
    accepts_per_second: float = RECONNECTS_PER_SECOND
    drain_seconds: float = 30.0

    @property
    def processes(self) -> int:
        """Processes of each machine that take every event."""
        return 1 if self.costs.uses_all_cores else self.workers

    def forecast(self, demand: Demand) -> Forecast:
        """The forecast of a demand on these machines."""
        return forecast(
            demand,
            self.costs,
            self.instance,
            workers=self.workers,
            target_cpu_percent=self.target_cpu_percent,
        )


@attrs.frozen(kw_only=True)
class NatsTraffic:
    """What the NATS cluster of a region carries, per second.

    Args:
        events: that come into its stream.
        deliveries: messages to the processes of the region.
        replicas: copies from the leader of each stream to the two other nodes.
        outwards: messages to the mirrors of other regions; 0 but in the first region.
        bytes_out: of all these, with TCP/IP headers.
        outwards_bytes: of those to other regions.
        subscriptions, consumers: of all processes of the region, and of the mirrors that read here.
    """

    events: float
    deliveries: float
    replicas: float
    outwards: float
    bytes_out: float
    outwards_bytes: float
    subscriptions: int
    consumers: int


@attrs.frozen(kw_only=True)
class Region:
    """One region.

    Args:
        number: from 1; the stream is in the first one.
        users: connections, spread evenly over its nodes.
        needed: nodes that these need; `nodes`: that it has.
        connections: of each node when all run.
        cores, memory_mib, egress_gbit: of each node then, `writes_per_second` too.
        nats: what its cluster carries.
        gib: traffic of a month to the users.
        egress_usd: the cost of that traffic, by the tiers for this region alone.
        bill: the things to buy, with that.
    """

    number: int
    users: int
    needed: int
    nodes: int
    connections: int
    cores: float
    memory_mib: float
    egress_gbit: float
    writes_per_second: float
    nats: NatsTraffic
    gib: float
    egress_usd: float
    bill: Sequence[Item]

    @property
    def monthly_usd(self) -> float:
        """The sum of the bill."""
        return sum(item.monthly_usd for item in self.bill)


@attrs.frozen(kw_only=True)
class Loss:
    """The loss of a part, and how its clients come back.

    Args:
        kind: "node", "drain", "nats" or "region"; `what`: the part, in words.
        clients: that have to connect again.
        nodes: that remain for them, of all regions.
        fits: whether there is room for all of them.
        more_nodes: that would have to be added for that, of all regions; `more_usd`: their cost.
        calm: the end of the storm, in the region where it takes longest; None: nobody reconnects.
        pause_seconds: that events wait meanwhile; None: not measured, or they do not.
        reattached: processes that connect to another node of NATS.
    """

    kind: str
    what: str
    clients: int
    nodes: int
    fits: bool = True
    more_nodes: int = 0
    more_usd: float = 0.0
    calm: Calm | None = None
    pause_seconds: float | None = None
    reattached: int = 0


@attrs.frozen(kw_only=True)
class Layout:
    """The whole answer of `trio-odin plan --regions`.

    Args:
        demand: of all users.
        instance: the servers' machine.
        max_connections: that one of these can hold; `bound_by` names the limit.
        regions: none if no number of machines is enough.
        losses: of a node, a drain, a node of NATS, a region.
        egress: all traffic to the users by each rate and encoding that was asked for; its cost is
            the sum of the regions', each by its own tiers.
        workers, spare, survives_region: as they were asked for.
        survival_nodes: nodes that are missing to survive the loss of any region, in all regions.
        target_cpu_percent: as it was asked for.
        target_cores: of a node, that may be used at most.
        costs: by which all this was computed.
    """

    demand: Demand
    instance: Instance
    max_connections: int
    bound_by: str
    regions: Sequence[Region]
    losses: Sequence[Loss]
    egress: Sequence[Egress]
    workers: int
    spare: int
    survives_region: bool
    survival_nodes: int
    target_cpu_percent: float
    target_cores: float
    costs: Costs

    @property
    def is_possible(self) -> bool:
        """Whether any number of the machines is enough."""
        return bool(self.regions)

    @property
    def nodes(self) -> int:
        """Servers of all regions."""
        return sum(region.nodes for region in self.regions)

    @property
    def monthly_usd(self) -> float:
        """The cost of all regions."""
        return sum(region.monthly_usd for region in self.regions)

    def as_json(self) -> bytes:
        """Indented JSON with the names of the attributes, and the sums."""
        sums = {"nodes": self.nodes, "monthly_usd": self.monthly_usd}
        known = msgspec.json.decode(msgspec.json.encode(self))
        for written, region in zip(known["regions"], self.regions, strict=True):
            written["monthly_usd"] = region.monthly_usd
        return msgspec.json.format(msgspec.json.encode({**known, **sums}), indent=1)


def shared(users: int, shares: Sequence[float]) -> list[int]:
    """The users of each region, whole and in the same sum.

    Raises:
        ValueError: a share is not above 0.
    """
    if not shares or min(shares) <= 0:
        raise ValueError("allowed are numbers above 0, one for each region")
    total, given, counts = sum(shares), 0, []
    reached = 0.0
    for share in shares:
        reached += share
        counts.append(round(users * reached / total) - given)
        given += counts[-1]
    return counts


def lay_out(
    demand: Demand,
    common: Common,
    shares: Sequence[float],
    *,
    ways: Sequence[tuple[int, str]] = (),
) -> Layout:
    """Find the machines, what they carry and cost, and what the loss of a part means.

    Args:
        demand: of all users.
        common: machines and costs.
        shares: of the users of each region, in any unit; the first has the stream.
        ways: rates and encodings whose traffic is compared; none: those of the demand.

    Raises:
        ValueError: a share is not above 0.
    """
    users = shared(demand.users, shares)
    best = common.forecast(demand)
    regions, survival_nodes = [], 0
    if best.instances is not None:
        counts = _counts(users, best.max_connections, common)
        surviving = attrs.evolve(common, survives_region=True)
        survival_nodes = sum(_counts(users, best.max_connections, surviving)) - sum(counts)
        regions = [
            _region(number, users, counts[number], demand, common, best.max_connections)
            for number in range(len(users))
        ]
    return Layout(
        demand=demand,
        instance=common.instance,
        max_connections=best.max_connections,
        bound_by=best.bound_by,
        regions=regions,
        losses=_losses(regions, demand, common, best.max_connections) if regions else [],
        egress=[
            _egress(attrs.evolve(demand, every_ms=every_ms, encoding=encoding), common, users)
            for every_ms, encoding in ways or [(demand.every_ms, demand.encoding)]
        ],
        workers=common.workers,
        spare=common.spare,
        survives_region=common.survives_region,
        survival_nodes=survival_nodes,
        target_cpu_percent=common.target_cpu_percent,
        target_cores=best.target_cores,
        costs=common.costs,
    )


def _egress(demand: Demand, common: Common, users: Sequence[int]) -> Egress:
    found = egress(demand, common.costs, common.tariff.egress)
    each = [demand.of(count).bytes_per_month(common.costs.wire) / GIB for count in users]
    usd = sum(egress_usd(gib, common.tariff.egress) for gib in each)
    return attrs.evolve(found, monthly_usd=usd)


# ---- a region


def _needed(users: int, most: int) -> int:
    return max(1, math.ceil(users / most))


def _counts(users: Sequence[int], most: int, common: Common) -> list[int]:
    return [_count(number, users, most, common) for number in range(len(users))]


def _count(number: int, users: Sequence[int], most: int, common: Common) -> int:
    """Nodes of a region: for its users with some lost, and for those of another one if asked."""
    nodes = _needed(users[number], most) + common.spare
    if common.survives_region and len(users) > 1:
        nodes = max(nodes, _needed(_after_loss(number, users), most))
    return nodes


def _after_loss(number: int, users: Sequence[int]) -> int:
    """The users of a region after the worst loss of another one."""
    others = [other for other in range(len(users)) if other != number]
    return users[number] + max(_moved(users, other)[number] for other in others)


def _moved(users: Sequence[int], lost: int) -> list[int]:
    """How the users of a lost region spread over the others: by the users that these have."""
    rest = [0 if number == lost else max(1, count) for number, count in enumerate(users)]
    return [math.ceil(users[lost] * part / sum(rest)) for part in rest]


def _region(
    number: int, users: Sequence[int], nodes: int, demand: Demand, common: Common, most: int
) -> Region:
    own = demand.of(users[number])
    each = demand.of(math.ceil(users[number] / nodes))
    costs, tariff = common.costs, common.tariff
    gib = own.bytes_per_month(costs.wire) / GIB
    usd = egress_usd(gib, tariff.egress)
    nats = nats_traffic(
        demand, nodes * common.processes, mirrors=len(users) - 1 if number == 0 else 0
    )
    between_gib = nats.outwards_bytes * _MONTH_SECONDS / GIB
    between_usd = between_gib * tariff.between_regions_usd_per_gib
    balancer_usd = tariff.balancer.monthly_usd + gib * tariff.balancer.usd_per_gib
    machine = partial(_machines, tariff=tariff)
    bill = [
        Item(
            what="servers",
            count=nodes,
            unit=common.instance.name,
            monthly_usd=nodes * common.instance.monthly_usd,
        ),
        machine("NATS", _NATS_MACHINE, NATS_NODES),
        machine("monitoring", _MONITOR_MACHINE, 1),
        Item(what="load balancer", count=1, unit="", monthly_usd=balancer_usd),
        Item(what="traffic to the users", count=gib, unit="GiB", monthly_usd=usd),
    ]
    if between_gib:
        bill.append(
            Item(
                what="traffic to other regions",
                count=between_gib,
                unit="GiB",
                monthly_usd=between_usd,
            )
        )
    return Region(
        number=number + 1,
        users=users[number],
        needed=_needed(users[number], most),
        nodes=nodes,
        connections=each.users,
        cores=costs.cores_of(each, processes=common.processes),
        memory_mib=costs.memory_mib(each.users, processes=common.processes),
        egress_gbit=each.bytes_per_second(costs.wire) * 8 / 1e9,
        writes_per_second=each.writes_per_second,
        nats=nats,
        gib=gib,
        egress_usd=usd,
        bill=bill,
    )


def _machines(what: str, name: str, count: int, *, tariff: Tariff) -> Item:
    usd = count * tariff.machines[name].monthly_usd
    return Item(what=what, count=count, unit=name, monthly_usd=usd)


# ---- NATS


def nats_message_bytes(payload_bytes: int) -> int:
    """The bytes of an event from NATS to a consumer, with TCP/IP headers, one in a segment."""
    consumer = f"trio-odin-{'0' * 16}"
    reply = f"$JS.ACK.ODIN_TOKENS.{consumer}.1.1000000.1000000.{10**18}.0"
    head = f"MSG odin.token.TOKEN.trade 2 {reply} {payload_bytes}\r\n"
    return with_headers(len(head) + payload_bytes + 2)


def nats_traffic(demand: Demand, processes: int, *, mirrors: int) -> NatsTraffic:
    """What the cluster of a region carries for so many processes, and mirrors in other regions."""
    each = nats_message_bytes(demand.payload_bytes)
    deliveries = demand.rate * processes
    replicas = demand.rate * (NATS_NODES - 1) * _STREAMS
    outwards = demand.rate * mirrors
    return NatsTraffic(
        events=demand.rate,
        deliveries=deliveries,
        replicas=replicas,
        outwards=outwards,
        bytes_out=(deliveries + replicas + outwards) * each,
        outwards_bytes=outwards * each,
        subscriptions=processes * SUBSCRIPTIONS,
        # That of the newest events reads as a consumer, too.
        consumers=processes + 1 + mirrors,
    )


# ---- the loss of a part


def _losses(regions: Sequence[Region], demand: Demand, common: Common, most: int) -> list[Loss]:
    largest = max(regions, key=lambda region: region.connections)
    losses = []
    if largest.nodes > 1:
        losses += [
            _node_lost(largest, demand, common, most),
            _node_drained(largest, demand, common, most),
        ]
    else:
        losses.append(
            Loss(
                kind="node",
                what="a node",
                clients=largest.users,
                nodes=0,
                fits=False,
                more_nodes=1,
                more_usd=common.instance.monthly_usd,
            )
        )
    losses.append(_nats_lost(regions, common))
    if len(regions) > 1:
        # Shares that are alike differ by a user.
        most_users = max(region.users for region in regions)
        lost = next(n for n, region in enumerate(regions) if region.users >= most_users - 1)
        losses.append(_region_lost(regions, lost, demand, common, most))
    return losses


def _storm(
    demand: Demand, common: Common, most: int, *, clients: float, nodes: int, present: float
) -> Storm:
    """Clients that come to so many nodes, each of which has some already."""
    costs, processes = common.costs, common.processes
    of_one = 1.0 if not costs.uses_all_cores else common.instance.cpu_limit
    core = min(common.instance.cpu_limit / processes, of_one)

    def busy(connections: float) -> float:
        cores = costs.cores_of(demand.of(round(connections)), processes=processes)
        return min(1.0, cores / processes / core)

    return Storm(
        clients=clients,
        nodes=nodes,
        present=present,
        room=most,
        processes=processes,
        busy=busy,
        connect_us=(costs.reconnect_us or costs.connect_us or _GUESSED_US) / core,
        accepts_per_second=common.accepts_per_second,
    )


# A guess of the server, too, until it has measured its own: `AcceptPace`.
_GUESSED_US = 500.0


def _node_lost(region: Region, demand: Demand, common: Common, most: int) -> Loss:
    """The process is killed: its clients see the end of the connection at once."""
    rest = region.nodes - 1
    present = (region.users - region.connections) / rest
    storm = _storm(
        demand, common, most, clients=region.connections, nodes=rest, present=max(0.0, present)
    )
    more = _needed(region.users, most) - rest
    return Loss(
        kind="node",
        what="a node",
        clients=region.connections,
        nodes=rest,
        fits=more <= 0,
        more_nodes=max(0, more),
        more_usd=max(0, more) * common.instance.monthly_usd,
        calm=simulate(storm),
    )


def _node_drained(region: Region, demand: Demand, common: Common, most: int) -> Loss:
    """The node sends its clients away, each at its own time."""
    lost = _node_lost(region, demand, common, most)
    plan = plan_drain(
        region.connections,
        reconnects_per_second=common.accepts_per_second or RECONNECTS_PER_SECOND,
        drain_seconds=common.drain_seconds,
        phase=0.0,
    )
    last = plan.slots[-1] if plan.slots else 0.0
    storm = attrs.evolve(
        _storm(
            demand,
            common,
            most,
            clients=region.connections,
            nodes=lost.nodes,
            present=max(0.0, (region.users - region.connections) / lost.nodes),
        ),
        notice_seconds=(0.0, last),
        spread_seconds=_SOON_SECONDS,
    )
    return attrs.evolve(lost, kind="drain", what="a node, drained", calm=simulate(storm))


def _nats_lost(regions: Sequence[Region], common: Common) -> Loss:
    """Clients stay. The processes that were connected to it go to the two others."""
    processes = max(region.nodes for region in regions) * common.processes
    return Loss(
        kind="nats",
        what="a node of NATS",
        clients=0,
        nodes=sum(region.nodes for region in regions),
        pause_seconds=common.costs.nats_failover_seconds,
        reattached=math.ceil(processes / NATS_NODES),
    )


def _region_lost(
    regions: Sequence[Region], lost: int, demand: Demand, common: Common, most: int
) -> Loss:
    """It falls silent. Its clients notice, try it once more in vain, and go to the others."""
    users = [region.users for region in regions]
    moved = _moved(users, lost)
    first, last = _SILENT_SECONDS
    storms, more = [], 0
    for number, region in enumerate(regions):
        if number == lost:
            continue
        more += max(0, _needed(region.users + moved[number], most) - region.nodes)
        storm = _storm(
            demand,
            common,
            most,
            clients=moved[number],
            nodes=region.nodes,
            present=region.users / region.nodes,
        )
        storms.append(
            attrs.evolve(
                storm, notice_seconds=(first + _DIAL_SECONDS, last + _DIAL_SECONDS), failures=1
            )
        )
    calms = [simulate(storm) for storm in storms]
    slowest = max(calms, key=lambda calm: math.inf if calm.seconds is None else calm.seconds)
    total = attrs.evolve(
        slowest,
        refused=sum(calm.refused for calm in calms),
        left_out=sum(calm.left_out for calm in calms),
        peak_busy=max(calm.peak_busy for calm in calms),
    )
    return Loss(
        kind="region",
        what=f"region {regions[lost].number}",
        clients=users[lost],
        nodes=sum(region.nodes for region in regions) - regions[lost].nodes,
        fits=more == 0,
        more_nodes=more,
        more_usd=more * common.instance.monthly_usd,
        calm=total,
    )
