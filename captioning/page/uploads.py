"""Photographs that wait for their captions, as files in a temporary folder: few enough, and not for long."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

from captioning.errors import InputError


class BusyError(InputError):
    """Too many photographs are waiting; it helps to come back."""


class Uploads:
    """Files by token.

    Args:
        folder: where they are stored; nothing else stands there.
        max_bytes: of one file.
        max_files: that wait at once.
        max_seconds: for one file to arrive.
        max_waiting: seconds after which a file that nobody has asked to caption is removed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        max_files: int,
        max_seconds: float = 120.0,
        max_waiting: float = 900.0,
    ) -> None:
        self.folder, self.max_bytes, self.max_files = folder, max_bytes, max_files
        self.max_seconds, self.max_waiting = max_seconds, max_waiting
        self._arrived: dict[str, float] = {}  # token: when, in seconds of the monotonic clock

    async def store(self, chunks: AsyncIterator[bytes]) -> str:
        """Store a photograph while it arrives, and return its token.

        Raises:
            InputError: it is empty, too large or too slow.
            BusyError: too many are waiting.
        """
        token = self._reserve()
        try:
            async with asyncio.timeout(self.max_seconds):
                await self._write(self.folder / token, chunks)
        except TimeoutError as error:
            self.remove(token)
            raise InputError(
                f"the photograph did not arrive within {self.max_seconds:g} seconds; send a smaller one"
            ) from error
        except BaseException:  # also a connection that is closed
            self.remove(token)
            raise
        return token

    def path(self, token: str) -> Path:
        """Return where an upload lies.

        Raises:
            InputError: there is none of this token.
        """
        # Only tokens that were given out are known, so that no request can name another file.
        if token not in self._arrived:
            raise InputError("the photograph is no longer here; send it again")
        return self.folder / token

    def remove(self, token: str) -> None:
        """Remove an upload, if it is there."""
        if self._arrived.pop(token, None) is not None:
            (self.folder / token).unlink(missing_ok=True)

    def _reserve(self) -> str:
        now = time.monotonic()
        for token, arrived in list(self._arrived.items()):
            if now - arrived > self.max_waiting:
                self.remove(token)
        if len(self._arrived) >= self.max_files:
            raise BusyError("too many photographs are waiting; try again in a minute")
        token = secrets.token_hex(16)
        self._arrived[token] = now  # from now on, so that photographs still arriving are counted too
        return token

    async def _write(self, path: Path, chunks: AsyncIterator[bytes]) -> None:
        size = 0
        with path.open("wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > self.max_bytes:
                    raise InputError(
                        f"the file is larger than {self.max_bytes / 1e6:g} MB; send a smaller photograph"
                    )
                file.write(chunk)
        if not size:
            raise InputError("the file is empty (0 bytes)")
