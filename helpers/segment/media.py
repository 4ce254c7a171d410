"""Media files opened by FFmpeg, whatever their names; whether the end of one is there."""

import os
from pathlib import Path

import av


def open_media(path: Path, mode: str = "r", format: str | None = None, **more):
    """`av.open` for a file, whatever its name; FFmpeg takes some names for protocols or for numbered pictures."""
    if mode == "r" and "%" in path.name:
        with os.fdopen(os.open(path, os.O_RDONLY), "rb") as file, av.open(file) as nameless:
            format = nameless.format.name.split(",")[0]
    # not an open file: an interrupt within a read of its would be lost
    return av.open(f"file:{path}", mode, format=format, **more)


def is_cut(path: Path) -> bool:
    """True if a file is shorter than the AVI or the last box of pictures (ISO/IEC 14496-12, section 4.2) it begins."""
    place, end, kind = 0, path.stat().st_size, b""
    with path.open("rb") as file:
        while place + 8 <= end:
            file.seek(place)
            head = file.read(16)
            if head.startswith(b"RIFF"):
                return 8 + int.from_bytes(head[4:8], "little") > end
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if size == 1:  # a longer one follows
                size = int.from_bytes(head[8:], "big")
            if size < 8:  # up to the end, or no box at all
                return False
            place += size
    return place > end and kind in (b"moof", b"mdat")
