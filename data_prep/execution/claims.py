"""Claims: several processes, on several machines, share the shards of one output folder without a lock server.

Below `<output folder>/.work/` every process has a file `claimant-<owner>` whose name says which process it is
(liveness.py) and whose modification time is its heartbeat. It claims a shard by a hard link `claim-<shard>` to that
file: made in one step, with its content, or not at all. A claim is taken over when its claimant is dead: a process of
the same machine that has ended, or one elsewhere without a heartbeat for `lease` seconds by the clock of the file
system.

Claims save double work and nothing else. Shards are deterministic and committed by renames, so two processes that make
one shard (a stalled one that was given up wrongly, say) end in the same bytes. What is never done because a lease has
run out: removing the temporaries of a shard that has no record yet, for their writer may live.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

from data_prep.execution.failures import TRACE
from data_prep.execution.liveness import is_gone, new_owner
from data_prep.execution.records import WORK, parse_temporary, read_record
from retro.artifacts.manifest import MANIFEST_NAME

_CLAIMANT, _CLAIM, _TAKEN = "claimant-", "claim-", "taken-"
_BEATS_PER_LEASE = 5
# What link() says where there are no hard links, or no more of them.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EXDEV)


class Claims:
    """The claims of this process on the parts of one output folder. A context: its end gives everything back."""

    def __init__(self, folder: Path, lease: float) -> None:
        """`folder`: an existing output folder; `lease`: seconds."""
        self.folder, self.lease = folder, lease
        self.work = folder / WORK
        self.owner = new_owner()
        self._own = self.work / f"{_CLAIMANT}{self.owner}"
        self._held: set[str] = set()
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
        self._offset = 0.0  # clock of the file system minus time.monotonic()

    def __enter__(self) -> Claims:
        self._announce()
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._heart.join()
        for name in sorted(self._held):
            self.release(name)
        try:
            self.sweep(leaving=True)
            self._own.unlink(missing_ok=True)
            self.work.rmdir()
        except OSError:
            pass  # others are at work, or nothing can be written here: the next run clears it

    def take(self, name: str) -> bool:
        """Claim a part; True if it is ours now (or was before). A claim of a dead process is taken over."""
        if name in self._held:
            return True
        path = self.work / f"{_CLAIM}{name}"
        for _ in range(2):
            if self._link(path):
                self._held.add(name)
                return True
            if not self._take_away(path):
                return False
        return False

    def release(self, name: str) -> None:
        """Give a part back. If it was taken from us meanwhile it stays the other's."""
        self._held.discard(name)
        path = self.work / f"{_CLAIM}{name}"
        try:
            if self._owner_of(path) == self.owner:
                path.unlink(missing_ok=True)
        except OSError:
            pass

    def discard_temporaries(self, name: str) -> None:
        """Remove what our dead workers left of a part."""
        for path in self._files():
            found = parse_temporary(path.name)
            if found == (self.owner, name):
                shutil.rmtree(path, ignore_errors=True)

    def sweep(self, leaving: bool = False) -> None:
        """Remove temporaries, claims and claimants of the dead; with `leaving` our own temporaries too.

        Where death is only concluded from a lease, temporaries go when their shard is recorded, and not before.
        """
        verdicts: dict[str, bool | None] = {}

        def gone(owner: str) -> bool | None:
            if owner == self.owner:
                return leaving
            if owner not in verdicts:
                verdicts[owner] = self._gone(owner)
            return verdicts[owner]

        finished = (self.folder / MANIFEST_NAME).exists()
        files = self._files()
        keep: set[str] = set()
        for path in files:
            found = parse_temporary(path.name)
            if found is None:
                continue
            verdict = gone(found[0])
            if verdict or (verdict is None and read_record(self.folder, found[1]) is not None):
                shutil.rmtree(path, ignore_errors=True)
            else:
                keep.add(found[0])
        for path in files:
            if path.name.startswith(_CLAIM):
                if self._owner_of(path) != self.owner:
                    self._take_away(path)
            elif path.name.startswith(_TAKEN) or (finished and path.name.startswith(TRACE)):
                path.unlink(missing_ok=True)
            elif path.name.startswith(_CLAIMANT):
                owner = path.name.removeprefix(_CLAIMANT)
                if owner != self.owner and owner not in keep and gone(owner) is not False:
                    path.unlink(missing_ok=True)

    def holder(self, name: str) -> str:
        """Who holds a part, for people."""
        try:
            found = json.loads((self.work / f"{_CLAIM}{name}").read_text(encoding="utf-8"))
            return f"process {found['pid']} on {found['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"

    def _files(self) -> list[Path]:
        try:
            return sorted(self.work.iterdir())
        except FileNotFoundError:
            return []

    def _announce(self) -> None:
        """Write our own file. It is gone if we stalled for longer than the lease and were cleared away as dead."""
        text = json.dumps({"owner": self.owner, "host": socket.gethostname(), "pid": os.getpid()})
        while True:
            self.work.mkdir(exist_ok=True)
            try:
                self._own.write_text(text, encoding="utf-8")
                break
            except FileNotFoundError:  # the last claimant before us has just removed the folder
                continue
        self._beat()

    def _link(self, path: Path) -> bool:
        try:
            if not self._own.exists():
                self._announce()
            os.link(self._own, path)
            return True
        except FileExistsError:
            return self._owner_of(path) == self.owner  # over a network the answer to a link that worked can be lost
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        # No hard links: an exclusive file. A kill between the two steps leaves an empty one, which its lease clears.
        try:
            with open(path, "xb") as file:
                file.write(self._own.read_bytes())
            return True
        except FileExistsError:
            return False

    def _owner_of(self, path: Path) -> str | None:
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["owner"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _take_away(self, path: Path) -> bool:
        """Remove a claim if its claimant is dead; True if the part is free now."""
        owner = self._owner_of(path)
        if self._gone(owner, path) is False:
            return False
        # Renamed first: of several that saw a dead claim only one moves it, and none removes its successor.
        taken = path.with_name(f"{_TAKEN}{secrets.token_hex(4)}")
        try:
            os.rename(path, taken)
        except FileNotFoundError:
            return True
        if self._owner_of(taken) != owner:  # a live one, made in between: put it back
            with contextlib.suppress(OSError):
                os.link(taken, path)
        taken.unlink(missing_ok=True)
        return True

    def _gone(self, owner: str | None, claim: Path | None = None) -> bool | None:
        """True: the claimant is dead for certain; None: its lease has run out; False: it lives as far as we know.

        owner None: a claim that was left empty, of which the file `claim` itself is all there is.
        """
        gone = None if owner is None else is_gone(owner)
        if gone:
            return True
        age = self._age(self.work / f"{_CLAIMANT}{owner}" if owner is not None or claim is None else claim)
        if age is None:
            return True  # it ended in order, or was cleared away as dead
        if gone is None and age > self.lease:
            return None
        return False

    def _age(self, path: Path) -> float | None:
        """Seconds since the last heartbeat by the file system's clock, None if there is no such file."""
        try:
            # Opened, because network file systems bring the attributes up to date then.
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            return time.monotonic() + self._offset - os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)

    def _beat(self) -> None:
        """Touch our own file, so that its time is the file system's now."""
        try:
            os.utime(self._own)
            self._offset = self._own.stat().st_mtime - time.monotonic()
        except OSError:
            pass  # a full or lost file system shows elsewhere

    def _keep_beating(self) -> None:
        while not self._stop.wait(self.lease / _BEATS_PER_LEASE):
            self._beat()


def clear_leftovers(folder: Path, lease: float) -> None:
    """Remove what killed processes left beside a finished artifact, if anything and if it can be written."""
    if (folder / WORK).is_dir():
        try:
            with Claims(folder, lease) as claims:
                claims.sweep()
        except OSError:
            pass
