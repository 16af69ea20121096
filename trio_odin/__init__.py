"""Filtered WebSocket fan-out of NATS token events, on trio.

Layout, in reading order:

    server, drain            the nursery tree; closing every client in order
    upstream/                NATS to the inbound queue: link, bridge, stream position, gaps
    fanout/                  inbound queue to sockets: hub, registry, buffers, Outbound
    listener/, auth/         a TCP connection to a client or a rejection; origins, tokens, grants
    connection/              one client: its tasks, session, keepalive and end
    overload/                load monitor, admission, load shedder, limits in bytes
    workers/, signals        several processes as one server: supervisor, slots, parent link
    wire/, ledger/, net/     frames and commands; counters and reasons; addresses and HTTP
    settings/, telemetry/    every setting; metrics, health, logs and traces
    admin/, top/, check      what operators see and steer, over all workers; `serve --check`
    client/                  the Python client: a pure core, and its shells for trio and asyncio
    demo/, lab/, cli/        trying it; measuring it from outside; one module per command
"""

__version__ = "0.1.0"
