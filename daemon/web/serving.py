"""The web process: the application on one socket, in the life of a role like all the others.

Owns the server thread. Signals belong to ``RoleProcess``; nothing here writes to the database.
"""

from __future__ import annotations

import logging
import socket
import threading

import uvicorn

from daemon.config import Config, WebSection
from daemon.errors import PortTaken
from daemon.role import RoleProcess
from daemon.web.application import create_app
from daemon.web.connection import PunctualConnection
from storage.database import Database

_START_SECONDS = 30.0
_STOP_SECONDS = 5.0
_MOST_CONNECTIONS = 100


class WebServer:
    """Serves one application from a thread of its own.

    Parameters
    ----------
    config : Config
        Where to listen, and everything the application needs.

    Raises
    ------
    PortTaken
        The address or port cannot be listened on.
    """

    def __init__(self, config: Config) -> None:
        # Addresses of pages and searches may hold a patient's name. uvicorn's own switch leaves
        # the logger open to handlers that others add; this does not.
        logging.getLogger("uvicorn.access").disabled = True
        self._socket = _listen(config.web)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_app(config),
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                lifespan="off",
                ws="none",
                loop="asyncio",
                http=PunctualConnection,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=int(_STOP_SECONDS),
            )
        )
        self._thread = threading.Thread(target=self._serve, name="web", daemon=True)

    @property
    def is_serving(self) -> bool:
        """True while requests are answered."""
        return self._thread.is_alive() and self._server.started

    def start(self) -> None:
        """Begin to answer; return once that is so.

        Raises
        ------
        PortTaken
            The server ended at once.
        """
        self._thread.start()
        pause = threading.Event()
        waited = 0.0
        while self._thread.is_alive() and not self._server.started and waited < _START_SECONDS:
            pause.wait(0.02)
            waited += 0.02
        if not self.is_serving:
            raise PortTaken(f"the worklist page did not start on port {self.port}: see the log")

    def stop(self) -> None:
        """Let requests under way end, then close the socket."""
        self._server.should_exit = True
        self._thread.join(timeout=2 * _STOP_SECONDS)
        self._socket.close()

    def _serve(self) -> None:
        # In a thread uvicorn leaves the signals alone.
        self._server.run(sockets=[self._socket])


def _listen(section: WebSection) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            section.address, section.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server((str(address[0]), section.port), family=family, backlog=128)
    except OSError as error:
        raise PortTaken(
            f"web.address {section.address!r}, web.port {section.port}: cannot listen there "
            f"({error.strerror or error}): choose another web.port or stop what holds it"
        ) from error


def run_web(config: Config, database: Database, slot: str) -> None:
    """Show the worklist until a stop is asked for.

    Raises
    ------
    PortTaken
        The configured port cannot be listened on, or the server ended by itself.
    """
    server = WebServer(config)
    role = RoleProcess(config, database, "web", slot)
    server.start()
    role.begin({"address": config.web.address, "port": server.port})
    while server.is_serving and not role.wait(0.5):
        pass
    ended_by_itself = not role.is_stopping
    server.stop()
    role.end()
    if ended_by_itself:
        raise PortTaken(f"the worklist page on port {server.port} ended by itself: see the log")
