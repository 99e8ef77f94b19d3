"""Files as this project reads and writes them: JSON that is checked before it is believed, and writing that is whole or
not at all.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import socket
import stat
from pathlib import Path
from typing import Any

from planner.errors import InputError, PlannerError

#: JSON files beyond this are a mistake; the largest profile here has 0.4 MB.
LARGEST_JSON_BYTES = 1 << 28
#: Lists and objects in each other, at most. A profile has 8.
DEEPEST = 64


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new one, never a part; folders are made as needed.

    A new file gets the mode that the umask gives, an old one keeps its own; behind a link the file it names is written.
    The folder is synchronised too, so that after a power cut the name stands for one of the two contents. What a
    killed process left unfinished is removed by the next one that writes the same file.

    Raises:
        InputError: the place cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(path)
    temporary = None
    try:
        target = Path(os.path.realpath(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = _mode(target)
        _sweep(target)
        temporary = target.parent / f".{target.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
        # The kernel applies the umask: to ask for it would mean to change it, for every thread.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode & 0o600)
        with os.fdopen(handle, "wb") as stream:
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
        _synchronise(target.parent)
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        cause = f"cannot write {target}: {getattr(error, 'strerror', None) or error}"
        raise InputError(cause, "Choose a folder that can be written") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # gone after a successful replace
                os.unlink(temporary)


def _mode(target: Path) -> int | None:
    """The permission bits of a file; None where there is none yet."""
    try:
        return stat.S_IMODE(target.stat().st_mode)
    except FileNotFoundError:
        return None


def _sweep(target: Path) -> None:
    """Remove what processes of this machine that no longer run left of writing `target`."""
    name = re.compile(rf"\.{re.escape(target.name)}\.{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]+\.tmp")
    for entry in os.listdir(target.parent):
        found = name.fullmatch(entry)
        if found is not None and not _runs(int(found[1])):
            with contextlib.suppress(OSError):
                os.unlink(target.parent / entry)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _synchronise(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems have no such thing
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_text(path: str | Path, largest_bytes: int = LARGEST_JSON_BYTES) -> str:
    """The text of a file in UTF-8.

    Raises:
        InputError: it is missing, no ordinary file, too large, or no UTF-8.
    """
    source = Path(path)
    try:
        if not source.is_file() and source.exists():
            raise InputError(f"{source} is not a file", "Give a file")
        size = source.stat().st_size
        if size > largest_bytes:
            raise InputError(f"{source} has {size:,} bytes, and {largest_bytes:,} are the most", "Check the path")
        return source.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{source} does not exist", "Check the path") from error
    except (OSError, ValueError) as error:  # UnicodeDecodeError, or a null byte in the name
        raise InputError(f"cannot read {source}: {error}", "Check the path and its permissions") from error


def is_file(path: Path) -> bool:
    """`Path.is_file`, and no error for what can be no name, as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """`Path.is_dir` in the manner of `is_file`."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def in_folder(path: str | Path, name: str) -> Path:
    """A file by its path, or by the folder in which it lies under its usual name."""
    return Path(path) / name if is_folder(Path(path)) else Path(path)


def document_in(path: str | Path) -> Path:
    """The plan that lies in a folder, else the profile; of a model's folder or a file the path itself."""
    folder = Path(path)
    if is_folder(folder) and not is_file(folder / "config.json"):
        return next((folder / name for name in ("plan.json", "profile.json") if is_file(folder / name)), folder)
    return folder


def parse_json(text: str, source: str, error: type[PlannerError], remedy: str) -> Any:
    """Parse JSON strictly: finite numbers, no key twice, text that can be written again, at most `DEEPEST` levels.

    Args:
        source: how the refusal names the text.
        error: what is raised; with `remedy`.

    Raises:
        PlannerError: `error`, where the text is not such JSON.
    """
    try:
        found = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_unique_keys)
        _check(found)
    except RecursionError as deep:
        raise error(f"{source} is not valid JSON: it is nested too deeply", remedy) from deep
    except ValueError as wrong:
        raise error(f"{source} is not valid JSON: {wrong}", remedy) from wrong
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a number that can be stored")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!a} appears twice")
    return found


def _check(value: Any) -> None:
    """Refuse depth, and halves of surrogate pairs, which no encoding can write."""
    level = [value]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, str):
                _encodable(one)
            elif isinstance(one, dict):
                inner.extend(one)
                inner.extend(one.values())
            elif isinstance(one, list):
                inner.extend(one)
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def _encodable(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{text[error.start : error.end]!a} is half a character") from error
