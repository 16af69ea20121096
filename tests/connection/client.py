"""What a client sees: frames through wsproto's own parser, which knows nothing of our code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from wsproto.frame_protocol import Frame, FrameProtocol, Opcode

from trio_odin.fanout.answers import Answer


def frames_of(data: bytes) -> list[Frame]:
    """The frames in `data`, none of it left over. Raises wsproto's ParseFailed."""
    protocol = FrameProtocol(client=True, extensions=[])
    protocol.receive_bytes(data)
    frames = list(protocol.received_frames())
    if frames and frames[-1].opcode is Opcode.CLOSE:  # wsproto reads no further
        return frames
    protocol.receive_bytes(b"\x8a\x00")  # a pong: parsed as one only between two frames
    (marker,) = protocol.received_frames()
    assert marker.opcode is Opcode.PONG
    return frames


def as_sent(answers: Iterable[Answer], *, most: int = sys.maxsize) -> list[bytes]:
    """The frames of what a session answers, over a socket that takes `most` resent events."""
    frames: list[bytes] = []
    for answer in answers:
        if isinstance(answer, bytes):
            frames.append(answer)
            continue
        fitting = answer.messages[:most]
        frames += [publication.frame(seq) for seq, publication in fitting]
        frames += answer.finish(len(fitting))
    return frames


class LossRule:
    """How the protocol's page tells a client to know what was dropped, not only skipped."""

    def __init__(self) -> None:
        self._received = 0
        self._skipped = 0

    def lost(self, event: dict[str, Any]) -> int:
        """How many were dropped before `event`, which is the next one that is no replay."""
        self._received += 1
        self._skipped = event.get("skipped_total", self._skipped)
        lost: int = event["seq"] - self._received - self._skipped
        return lost


def texts_of(frames: Iterable[bytes]) -> list[str]:
    """The text messages; each has to be exactly one unfragmented frame."""
    texts = []
    for data in frames:
        (frame,) = frames_of(data)
        assert frame.opcode is Opcode.TEXT
        assert frame.frame_finished
        assert frame.message_finished
        assert isinstance(frame.payload, str)
        texts.append(frame.payload)
    return texts


def objects_of(frames: Iterable[bytes]) -> list[dict[str, Any]]:
    """The messages, each of which has to be a JSON object as RFC 8259 has it."""
    objects = [json.loads(text, parse_constant=_no_constant) for text in texts_of(frames)]
    assert all(isinstance(content, dict) for content in objects)
    return objects


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
