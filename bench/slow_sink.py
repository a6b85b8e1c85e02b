"""A far-away MTA for the benchmark: STARTTLS, and a wait after RCPT and after the last dot. Keeps nothing.

``python -m bench.slow_sink PORT DELAY_MS CERTIFICATE.pem`` until it is terminated. smtp-sink speaks no TLS.
"""

import asyncio
import ssl
import sys
from collections import deque
from typing import cast

import uvloop

BANNER = b"220 slow.test ESMTP\r\n"
EHLO = b"250-slow.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 STARTTLS\r\n"
END = b"\r\n.\r\n"


class Session(asyncio.Protocol):
    def __init__(self, delay_s: float, context: ssl.SSLContext) -> None:
        self._delay_s = delay_s
        self._context = context
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._tail = b""  # of the content
        self._in_content = False
        self._busy = False  # a late reply is owed: nothing else is looked at
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self.messages = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        first = self._transport is None
        self._transport = cast(asyncio.Transport, transport)
        if first:
            self._transport.write(BANNER)

    def data_received(self, data: bytes) -> None:
        self._take(data)
        self._work()

    def _take(self, data: bytes) -> None:
        if self._in_content:
            seen = self._tail + data[:4]
            end = seen.find(END)
            start = end + 5 - len(self._tail)  # in data, when the end began in what came before
            if end < 0:
                at = data.rfind(END)  # nothing of ours ends within a message
                start = at + 5 if at >= 0 else -1
            if start < 0:
                self._tail = (self._tail + data)[-4:]
                return
            self._in_content, self._tail = False, b""
            self._lines.append(b".")
            data = data[start:]
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        self._lines.extend(lines)

    def _work(self) -> None:
        while self._lines and not self._busy:
            verb = self._lines.popleft()[:4].upper()
            if verb in (b"RCPT", b"."):
                if self._delay_s:
                    self._busy = True
                    asyncio.get_running_loop().call_later(self._delay_s, self._late, verb)
                else:
                    self._answer(verb)
            else:
                self._answer(verb)
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def _late(self, verb: bytes) -> None:
        self._busy = False
        self._answer(verb)
        self._work()

    def _answer(self, verb: bytes) -> None:
        if verb == b"DATA":
            self._in_content, self._tail = True, b"\r\n"
            self._out.append(b"354 go on\r\n")
            rest, self._rest = self._rest, b""
            if rest:
                self._take(rest)
        elif verb == b".":
            self.messages += 1
            self._out.append(b"250 2.0.0 Ok: queued as %X\r\n" % self.messages)
        elif verb == b"EHLO":
            self._out.append(EHLO)
        elif verb == b"STAR":
            assert self._transport is not None
            self._transport.write(b"220 go on\r\n")
            self._task = asyncio.get_running_loop().create_task(self._start_tls(self._transport))
        elif verb == b"QUIT":
            assert self._transport is not None
            self._transport.write(b"221 bye\r\n")
            self._transport.close()
        else:
            self._out.append(b"250 2.1.0 Ok\r\n")

    async def _start_tls(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        self._transport = await loop.start_tls(transport, self, self._context, server_side=True)


async def serve(port: int, delay_s: float, certificate: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = await asyncio.get_running_loop().create_server(
        lambda: Session(delay_s, context), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]) / 1000, sys.argv[3]))
