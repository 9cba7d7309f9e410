"""A proxy in front of a real server: one that comes up late, or one that ends TLS."""

from __future__ import annotations

import asyncio
import ssl
import threading


class Forwarder(threading.Thread):
    """Listens on a port (0: any, see `port` once `listening`) and passes everything on to `target`, host:port."""

    def __init__(self, port: int, target: str, context: ssl.SSLContext | None = None) -> None:
        super().__init__(daemon=True)
        self.port, self.listening = port, threading.Event()
        self._host, self._target_port, self._context = target.split(":", maxsplit=1)[0], int(target.split(":")[1]), context
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            up, down = await asyncio.open_connection(self._host, self._target_port)
            writers.append(down)
            pipes = [asyncio.ensure_future(one) for one in (self._pipe(reader, down), self._pipe(up, writer))]
            try:
                await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pipe in pipes:
                    pipe.cancel()
                await asyncio.gather(*pipes, return_exceptions=True)
        finally:
            for end in writers:
                end.transport.abort()
            await asyncio.gather(*(end.wait_closed() for end in writers), return_exceptions=True)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self.listening.set()
        await self._over.wait()
        server.close()
        connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self.join(timeout=10)
