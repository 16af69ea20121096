"""A client's view: frames through wsproto's parser, which is independent of our code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

from wsproto.frame_protocol import Frame, FrameProtocol, Opcode

from trio_odin.fanout.answers import Answer
from trio_odin.fanout.batch import Batch
from trio_odin.fanout.replay_buffer import ReplayBuffer


def frames_of(data: bytes) -> list[Frame]:
    """The frames in `data`, with no bytes left over. Raises wsproto's ParseFailed."""
    protocol = FrameProtocol(client=True, extensions=[])
    protocol.receive_bytes(data)
    frames = list(protocol.received_frames())
    if frames and frames[-1].opcode is Opcode.CLOSE:  # wsproto reads no further
        return frames
    protocol.receive_bytes(b"\x8a\x00")  # a pong: parsed as one only between two frames
    (marker,) = protocol.received_frames()
    assert marker.opcode is Opcode.PONG
    return frames


def as_sent(
    answers: Iterable[Answer], numbers: ReplayBuffer, *, most: int = sys.maxsize
) -> list[bytes]:
    """The frames of a session's answers, over a socket that takes `most` resent events."""
    frames: list[bytes] = []
    for answer in answers:
        if isinstance(answer, bytes):
            frames.append(answer)
            continue
        if isinstance(answer, Batch):
            frames.append(answer.frame(numbers.append(answer)))
            continue
        fitting = answer.messages[:most]
        frames += [publication.frame(seq) for seq, publication in fitting]
        frames += answer.finish(len(fitting))
    return frames


class LossRule:
    """The rule of the protocol page by which a client tells dropped events from skipped ones."""

    def __init__(self) -> None:
        self._received = 0
        self._skipped = 0

    def lost(self, event: dict[str, Any]) -> int:
        """How many events were dropped before `event`, the next one that is not replayed."""
        self._received += 1
        self._skipped = event.get("skipped_total", self._skipped)
        lost: int = event["seq"] - self._received - self._skipped
        return lost


def texts_of(frames: Iterable[bytes]) -> list[str]:
    """The text messages; each must be exactly one unfragmented frame."""
    texts = []
    for data in frames:
        (frame,) = frames_of(data)
        texts.append(_text_of(frame))
    return texts


def _text_of(frame: Frame) -> str:
    assert frame.opcode is Opcode.TEXT
    assert frame.frame_finished
    assert frame.message_finished
    assert isinstance(frame.payload, str)
    return frame.payload


def objects_of(frames: Iterable[bytes]) -> list[dict[str, Any]]:
    """The messages; each must be a JSON object by RFC 8259."""
    return [_object_of(text) for text in texts_of(frames)]


def objects_in(data: bytes) -> list[dict[str, Any]]:
    """The same for text frames that follow one another in `data`."""
    return [_object_of(_text_of(frame)) for frame in frames_of(data)]


def _object_of(text: str) -> dict[str, Any]:
    content = json.loads(text, parse_constant=_no_constant)
    assert isinstance(content, dict)
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
