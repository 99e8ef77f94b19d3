"""A run's folder: nobody else writes into it at the same time, and nothing in it is lost by mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from calibrate.measuring.state import SUFFIX, load_state
from planner.errors import InputError, PlannerError

#: What a run without shards leaves beside its state.
RESULTS = ("profile.json", "plan.json", "report.html")


@contextmanager
def claimed(out: Path, part: str = "0-of-1", *, keep: bool = True, profile: Path | None = None) -> Iterator[None]:
    """Hold a folder for one run.

    The lock is the operating system's, so that a run that was killed holds nothing.

    Args:
        out: the folder; made if need be.
        part: which shard, as its state is called; several shards may share a folder.
        keep: refuse to overwrite; not so with ``--resume`` or ``--overwrite``.
        profile: decide from this profile: nothing but a plan is at stake.

    Raises:
        InputError: the folder cannot be written, is in use, or holds what would be overwritten.
    """
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / f".{part}.lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"another run is writing into {out}", "Wait for it, or give another --output folder"
        ) from error
    except OSError as error:
        cause = f"cannot write into {out}: {error.strerror or error}"
        raise InputError(cause, "Choose a folder that can be written") from error
    try:
        if keep:
            _refuse_overwriting(out, part, profile)
        yield
    finally:
        # Before it is released: whoever comes later makes a new one.
        (out / f".{part}.lock").unlink(missing_ok=True)
        lock.release()
        if made:
            with suppress(OSError):  # what was refused leaves no empty folder
                out.rmdir()


def _refuse_overwriting(out: Path, part: str, profile: Path | None) -> None:
    if profile is not None:
        at_stake = [out / "plan.json"]
        if (out / "profile.json").resolve() != profile.resolve():
            at_stake.append(out / "profile.json")
    else:
        at_stake = [out / f"{part}{SUFFIX}"] + ([out / name for name in RESULTS] if part == "0-of-1" else [])
    there = [path.name for path in at_stake if path.exists()]
    if there:
        remedy = "Give another --output folder, or --overwrite to lose it"
        if profile is None:
            remedy = f"--resume goes on with it; or {remedy[0].lower()}{remedy[1:]}"
        raise InputError(f"{out} holds the {', '.join(there)} of an earlier run", remedy)


def kept_state(out: Path, part: str = "0-of-1") -> str:
    """What an interrupted run leaves behind, as a sentence."""
    path = out / f"{part}{SUFFIX}"
    if not path.is_file():
        return f"Interrupted before anything was written into {out}"
    try:
        _, tables = load_state(path)
    except PlannerError as error:
        return f"Interrupted. {error}"
    samples = max((len(table) for table in tables.values()), default=0)
    done = [f"{path} keeps what was measured, of up to {samples} samples"]
    if (out / "profile.json").is_file():
        done.append(f"{out / 'profile.json'} is the finished profile")
    if (out / "trials.json").is_file():
        done.append(f"{out / 'trials.json'} keeps the losses of the candidates that ran")
    return f"Interrupted. {'; '.join(done)}"
