"""One checkpoint at a time is written behind the training's back."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundSave:
    """Calls `write` in a thread; an exception is kept for the one who waits."""

    def __init__(self, write: Callable[[], object]) -> None:
        self._error: BaseException | None = None
        self._write = write
        # A process that ends in spite of a save that hangs (a file system that is gone) must not be kept by it.
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether `wait` returns, or raises, at once."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return when the checkpoint is there. Raises what `write` raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self._error = error
