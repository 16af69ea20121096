"""Buffers in a state in which tests of several modules begin."""

from __future__ import annotations

from trio_odin.fanout.resume_buffer import ResumeBuffer
from trio_odin.upstream.gaps import Mark


def entered() -> ResumeBuffer:
    """The resume buffer of a server that has reached an empty stream."""
    resume_buffer = ResumeBuffer(max_age_seconds=30.0)
    resume_buffer.note(Mark("e", 0))
    return resume_buffer
