"""Budgets: how many bytes may wait in each place, as parts of the memory limit."""

from __future__ import annotations

from trio_odin.overload.cgroup import memory_group
from trio_odin.overload.meters import MemoryMeter
from trio_odin.settings.settings import Settings

# The memory limit is divided by this, unless a setting has another size.
_OUTBOXES_PART = 4
_REPLAY_PART = 8
_INBOUND_PART = 8
_WINDOWS_PART = 64


def inbound_bytes(settings: Settings) -> int:
    """Bytes that may wait in the inbound queue of each worker."""
    return _memory_bytes(settings) // _INBOUND_PART // settings.workers


def outboxes_bytes(settings: Settings) -> int:
    """Bytes that may wait in all outboxes together."""
    return settings.total_outbox_bytes or _memory_bytes(settings) // _OUTBOXES_PART


def replay_bytes(settings: Settings) -> int:
    """Bytes that all connections together may keep for replay."""
    return settings.total_replay_bytes or _memory_bytes(settings) // _REPLAY_PART


def windows_bytes(settings: Settings) -> int:
    """Bytes that each worker may keep of what clients deflated, for their next messages."""
    return _memory_bytes(settings) // _WINDOWS_PART // settings.workers


def _memory_bytes(settings: Settings) -> int:
    return MemoryMeter(settings.memory_limit_bytes, memory_group()).limit_bytes
