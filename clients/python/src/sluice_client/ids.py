"""Ids of events: UUIDv7 (RFC 9562), so that the database's index of ids stays dense."""

import os

from sluice_client.clock import now_ms


def uuid7() -> str:
    """A new id: 48 bits of time and 74 random bits. The random bits come from the kernel, so a fork repeats none."""
    random = int.from_bytes(os.urandom(10))
    value = (now_ms() & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | (random >> 62 & 0xFFF) << 64
    text = f"{value | 0b10 << 62 | random & 0x3FFF_FFFF_FFFF_FFFF:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
