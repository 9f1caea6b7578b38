"""Single keys from the terminal that a node runs in, as rosbag2's player takes them."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Mapping
from typing import Any

SPACE, RIGHT, UP, DOWN = " ", "\x1b[C", "\x1b[A", "\x1b[B"


class Keyboard:
    """Calls what ``keys`` binds to a key, in a thread of its own, until it is closed.

    Only where the standard input is a terminal and this process is in its foreground: a background process that
    touched the terminal would be stopped by it. Ctrl-C stays what it is.
    """

    def __init__(self, keys: Mapping[str, Callable[[], object]]) -> None:
        self._keys, self._file = keys, -1
        self._before: Any = None
        self._wake, self._end = os.pipe()
        self._thread: threading.Thread | None = None
        if in_foreground():
            self._file = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._file)
            tty.setcbreak(self._file, termios.TCSANOW)
            self._thread = threading.Thread(target=self._read, name="keyboard", daemon=True)
            self._thread.start()

    @property
    def listening(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _read(self) -> None:
        while True:
            ready, _, _ = select.select([self._file, self._wake], [], [])
            if self._wake in ready:
                return
            pressed = os.read(self._file, 64).decode("utf-8", "replace") if in_foreground() else ""
            if not pressed:  # the terminal is gone, or somebody else's
                return
            for key in _split(pressed):
                self._keys.get(key, lambda: None)()

    def close(self) -> None:
        """Give the terminal back as it was."""
        os.write(self._end, b"x")
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            if in_foreground():
                termios.tcsetattr(self._file, termios.TCSANOW, self._before)
        os.close(self._wake)
        os.close(self._end)


def in_foreground() -> bool:
    """Whether standard input is a terminal that listens to this process."""
    try:
        return sys.stdin is not None and sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):  # closed, or no terminal of this session
        return False


def _split(pressed: str) -> list[str]:
    """Characters and arrow keys, several of which may have come at once."""
    keys: list[str] = []
    while pressed:
        length = 3 if pressed.startswith("\x1b[") else 1
        keys.append(pressed[:length])
        pressed = pressed[length:]
    return keys
