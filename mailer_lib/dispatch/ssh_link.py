"""One connection to one dispatch server, shared by all its slots in this process, for callers that block.

    with shared_link(server, settings) as link:
        answer = link.request("spring-sale/1/mta-1.0", Op.PULSE)

An event loop in a thread of its own holds the connections. Over each runs one session, ``agent/remote.py``; requests
are told apart by their number. A connection that broke is opened again by the next request, after a back-off that all
slots share. Why one session: docs/decisions/0608.
"""

import asyncio
import contextlib
import itertools
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from functools import lru_cache
from shlex import quote
from typing import Any, TypeVar

import asyncssh

from mailer_lib.agent.frames import Decoder, Frame, FrameError, encode
from mailer_lib.agent.remote import PROTOCOL, Op
from mailer_lib.dispatch.channel import ChannelError, ChannelUnreachableError
from mailer_lib.fleet import ssh
from mailer_lib.fleet.servers import DispatchServer
from mailer_lib.release import release
from mailer_lib.settings import Settings

REQUEST_S = 30.0  # a keep-alive notices a dead connection after 20
HELLO_S = 20.0  # Python starts there
RETRY_FIRST_S, RETRY_MAX_S = 0.5, 15.0
_CHUNK = 1 << 18

T = TypeVar("T")


class _Session:
    """One run of ``agent/remote.py``. Lives on the loop."""

    def __init__(self, name: str, connection: asyncssh.SSHClientConnection) -> None:
        self._name = name
        self._connection = connection
        self._process: asyncssh.SSHClientProcess[bytes] | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._reading: asyncio.Task[None] | None = None
        self.broken = False

    async def open(self, command: str) -> None:
        """
        Raises:
            ChannelError: what runs there isn't this release, or doesn't run.
            ChannelUnreachableError: the connection broke.
        """
        self._process = await self._connection.create_process(command, encoding=None)
        decoder = Decoder()
        frames: list[Frame] = []
        while not frames:
            data = await self._process.stdout.read(_CHUNK)
            if not data:
                raise await self._did_not_start()
            try:
                frames.extend(decoder.feed(data))
            except FrameError as error:
                raise ChannelError(
                    f"{self._name} answers with something else than frames ({error}): does a start-up file of its "
                    "shell print something?"
                ) from None
        self._check(frames[0])
        self._reading = asyncio.create_task(self._read(decoder))

    async def _did_not_start(self) -> ChannelError:
        assert self._process is not None
        words = (await self._process.stderr.read(4000)).decode(errors="replace").strip()
        await self._process.wait_closed()
        if self._process.exit_status is None:
            return ChannelUnreachableError(f"{self._name}: the connection broke")
        return ChannelError(
            f"{self._name}: the agent's side doesn't start ({words or f'status {self._process.exit_status}'}): "
            f"`mailfleet server provision {self._name}` installs it"
        )

    def _check(self, hello: Frame) -> None:
        protocol, there = hello.header.get("hello"), hello.header.get("release")
        if protocol != PROTOCOL or there != release():
            raise ChannelError(
                f"{self._name} has Mailfleet {there} (protocol {protocol}), and this is {release()} (protocol "
                f"{PROTOCOL}): `mailfleet server provision {self._name}` brings it to this release. An agent that runs "
                "there ends when its grant is used up; no row is lost"
            )

    async def request(self, header: dict[str, Any], payload: bytes) -> Frame:
        assert self._process is not None
        number = next(self._numbers)
        answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._process.stdin.write(encode({"id": number, **header}, payload))
            await self._process.stdin.drain()
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def _read(self, decoder: Decoder) -> None:
        assert self._process is not None
        why: BaseException | None = None
        try:
            while data := await self._process.stdout.read(_CHUNK):
                for frame in decoder.feed(data):
                    answer = self._waiting.get(frame.header.get("id", 0))
                    if answer is not None and not answer.done():
                        answer.set_result(frame)
        except (FrameError, OSError, asyncssh.Error) as error:
            why = error
        self.close(f"the connection broke{f' ({why})' if why else ''}")

    def close(self, why: str) -> None:
        self.broken = True
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ChannelUnreachableError(f"{self._name}: {why}"))
        self._connection.abort()


class ServerLink:
    """Requests to one server, from any thread."""

    def __init__(self, server: DispatchServer, settings: Settings) -> None:
        self._server = server
        self._settings = settings
        self._session: _Session | None = None
        self._opening = asyncio.Lock()
        self._was_open = False
        self._retry_at = 0.0
        self._retry_s = RETRY_FIRST_S
        self._last_words = ""

    def request(
        self, job: str, op: Op, arguments: dict[str, Any] | None = None, payload: bytes = b""
    ) -> tuple[dict[str, Any], bytes]:
        """Ask for one operation on one job folder; returns the answer's header and payload.

        Raises:
            ChannelUnreachableError: the server is away; ask again later.
            ChannelError: it refuses; the sentence says why.
        """
        answer = _loop().run(self._request({"job": job, "op": op, **(arguments or {})}, payload))
        if "error" in answer.header:
            raise ChannelError(f"{self._server.name}: {answer.header['error']}")
        return answer.header, answer.payload

    def close(self) -> None:
        _loop().run(self._close())

    async def _request(self, header: dict[str, Any], payload: bytes) -> Frame:
        session = await self._opened()
        try:
            return await asyncio.wait_for(session.request(header, payload), REQUEST_S)
        except TimeoutError:
            session.close(f"no answer within {REQUEST_S:.0f} s")
            raise ChannelUnreachableError(f"{self._server.name} doesn't answer within {REQUEST_S:.0f} s") from None
        except (OSError, asyncssh.Error) as error:
            session.close("the connection broke")
            raise ChannelUnreachableError(f"{self._server.name}: the connection broke ({error})") from None

    async def _opened(self) -> _Session:
        async with self._opening:
            if self._session is not None and not self._session.broken:
                return self._session
            self._session = None
            if time.monotonic() < self._retry_at:
                raise ChannelUnreachableError(self._last_words)
            try:
                self._session = await self._open()
            except ChannelUnreachableError as error:
                self._last_words = str(error)
                self._retry_at = time.monotonic() + self._retry_s
                self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
                raise
            self._was_open, self._retry_s = True, RETRY_FIRST_S
            return self._session

    async def _open(self) -> _Session:
        server = self._server
        try:
            connection = await ssh.connect(server, self._settings)
        except ssh.SshUnreachableError as error:
            raise ChannelUnreachableError(str(error)) from None
        except ssh.SshRefusedError as error:
            if self._was_open:  # rows are on their way there: wait for a person, and for the server
                raise ChannelUnreachableError(str(error)) from None
            raise ChannelError(str(error)) from None
        session = _Session(server.name, connection)
        command = f"exec {quote(server.agent_python)} -P -m mailer_lib.agent.remote {quote(server.remote_jobs_dir)}"
        try:
            await asyncio.wait_for(session.open(command), HELLO_S)
        except TimeoutError:
            connection.abort()
            raise ChannelUnreachableError(f"{server.name}: the agent's side doesn't start in {HELLO_S:.0f} s") from None
        except (OSError, asyncssh.Error) as error:
            connection.abort()
            raise ChannelUnreachableError(f"{server.name}: the connection broke ({error})") from None
        except BaseException:
            connection.abort()
            raise
        return session

    async def _close(self) -> None:
        if self._session is not None:
            self._session.close("closed")


class _LoopThread:
    """An event loop that runs for the life of this process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="mailfleet-ssh", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


@lru_cache(maxsize=1)
def _loop_of(pid: int) -> _LoopThread:
    """A forked child has no thread of its parent's, and so begins its own."""
    return _LoopThread()


_making = threading.Lock()
_links: dict[tuple[object, ...], tuple[ServerLink, int]] = {}
os.register_at_fork(after_in_child=_links.clear)


def _loop() -> _LoopThread:
    with _making:
        return _loop_of(os.getpid())


@contextlib.contextmanager
def shared_link(server: DispatchServer, settings: Settings) -> Iterator[ServerLink]:
    """The link of this process to this server, where it is now; closed when nobody uses it any more."""
    place = (server.host, server.ssh_port, server.ssh_user, server.host_key)
    key = (server.id, *place, server.agent_python, server.remote_jobs_dir, settings.ssh_key_ref)
    with _making:
        link, users = _links.get(key) or (ServerLink(server, settings), 0)
        _links[key] = link, users + 1
    try:
        yield link
    finally:
        with _making:
            link, users = _links[key]
            if users > 1:
                _links[key] = link, users - 1
            else:
                del _links[key]
        if users == 1:
            link.close()
