"""One HTTP request per order, for contenders that are asked that way."""

from typing import Any

from benchmarks.workers.steps import Wire


class Asker:
    """Posts JSON and gives the JSON that comes back. Keeps connections open; as many as are used at once."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._session: Any = None

    async def post(self, path: str, body: Wire, **headers: str) -> Any:
        """Give the answer.

        Raises:
            RuntimeError: the status is not 2xx; the text says what was answered.
        """
        if self._session is None:
            import aiohttp  # noqa: PLC0415 - of the peers' layer; whoever asks over HTTP has looked for it

            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)
            )
        async with self._session.post(self._base_url + path, json=body, headers=headers) as answer:
            if answer.status >= 300:
                raise RuntimeError(f"POST {path}: {answer.status} {await answer.text()}")
            return await answer.json()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
