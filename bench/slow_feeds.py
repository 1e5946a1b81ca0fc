"""A server of feeds that each take a while: ``python -m bench.slow_feeds SECONDS`` prints its port, then serves."""

from __future__ import annotations

import asyncio
import sys

ENTRIES = 5
_ITEM = (
    "<item><guid>{feed}-{number}</guid><title>Article {number} of {feed}</title>"
    "<link>https://example.org/{feed}/{number}</link><pubDate>Mon, 01 Jan 2024 08:{number:02}:00 GMT</pubDate>"
    "<description>What article {number} is about, in a sentence or two.</description></item>"
)


def feed(name: str) -> bytes:
    """An RSS document with ENTRIES articles of its own."""
    items = "".join(_ITEM.format(feed=name, number=number) for number in range(ENTRIES))
    head = f"<title>{name}</title><link>https://example.org/{name}</link><description>A feed.</description>"
    return f'<?xml version="1.0" encoding="utf-8"?><rss version="2.0"><channel>{head}{items}</channel></rss>'.encode()


async def serve(seconds: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode().strip("/")
                body = feed(path)
                await asyncio.sleep(seconds)
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/rss+xml; charset=utf-8\r\n"
                    b"Content-Length: %d\r\n\r\n" % len(body)
                )
                writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
