"""What can happen to a file: one flipped bit, an end that is missing, all of it missing, other bytes in its place."""

import random
from pathlib import Path

WAYS = ("flipped", "emptied", "halved", "missing", "garbage")


def hurt(file: Path, way: str, rng: random.Random) -> str:
    """Damages a file in one of `WAYS`; returns what was done, in words."""
    sound = file.read_bytes()
    if way == "missing":
        file.unlink()
    elif way == "flipped" and sound:
        at, bit = rng.randrange(len(sound)), rng.randrange(8)
        file.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << bit]) + sound[at + 1 :])
        return f"{file.name}: bit {bit} of byte {at} flipped"
    elif way == "halved":
        file.write_bytes(sound[: len(sound) // 2])
    elif way == "emptied":
        file.write_bytes(b"")
    else:
        file.write_bytes(rng.randbytes(max(len(sound), 16)))
    return f"{file.name}: {way}"


def files_of(folder: Path) -> list[Path]:
    """All files below a folder, in an order that does not depend on the file system."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
