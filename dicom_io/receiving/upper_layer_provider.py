"""The upper layer provider of an accepted association, without a thread of its own.

Owns the waiting for the peer, for primitives and for timers. The association's thread serves it as
long as there is no need for a second one: starting that and waking it again and again costs more
than all it does for a short association. Must not know what is sent or received.
"""

from __future__ import annotations

import os
import select
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.timer import Timer

from dicom_io.receiving.bounded_reading import BoundedDUL
from dicom_io.receiving.upper_layer import (
    ARTIM_EXPIRED,
    AWAITING_ANSWER,
    AWAITING_REQUEST,
    ESTABLISHED,
    IDLE,
)

_LOOK_UP_SECONDS = 0.25
"""How often whoever serves looks at the timers; everything else wakes it at once."""
_NO_BELL = -1
_NOTHING_TO_WAIT_FOR = frozenset((AWAITING_REQUEST, AWAITING_ANSWER, ESTABLISHED))
"""States that no event leads out of once the association's thread wants its end."""


class SteadyTimer(Timer):
    """A timer on the clock that nobody sets, which a stop ends for good.

    pynetdicom's own takes the wall clock, and one that was stopped late has run out for ever.
    """

    _runs_out_at: float | None = None

    @property
    def expired(self) -> bool:
        """True when the time has run out since the start."""
        return self._runs_out_at is not None and time.monotonic() > self._runs_out_at

    @property
    def remaining(self) -> float:
        """Seconds until it runs out, 1 when it never does."""
        if self._runs_out_at is not None:
            return self._runs_out_at - time.monotonic()
        return 1 if self.timeout is None else self.timeout

    def start(self) -> None:
        """Begin anew."""
        self._runs_out_at = None if self.timeout is None else time.monotonic() + self.timeout

    def stop(self) -> None:
        """Never run out, unless it is started again."""
        self._runs_out_at = None


class UpperLayerProvider(BoundedDUL):
    """Serves the upper layer in the thread of its association, or in its own once started.

    Instances come from `AcceptedAssociation.make` alone.
    """

    is_threadless: bool
    """The association's thread serves."""
    _bell: int
    """An eventfd that wakes whoever serves out of its wait for the peer."""
    _bell_lock: threading.Lock

    def prepare(self, *, is_threadless: bool, on_fault: Callable[[str], None]) -> None:
        """Set up what `__init__` would, on a provider that pynetdicom made.

        `on_fault` is told what ends the association and is the peer's doing.
        """
        self.is_threadless = is_threadless
        self._on_fault = on_fault
        self.artim_timer = SteadyTimer(self.artim_timer.timeout)
        self._idle_timer = SteadyTimer(self._idle_timer.timeout)
        self._bell_lock = threading.Lock()
        self._bell = _NO_BELL
        # pynetdicom sleeps this long whenever nothing happened; the wait below takes its place.
        self._run_loop_delay = 0.0

    def tell_fault(self, fault: str) -> None:
        """Report what ends the association and is the peer's doing."""
        self._on_fault(fault)

    @property
    def is_undisturbed(self) -> bool:
        """True while the association is established and no event waits."""
        return not self.event_queue.queue and self.state_machine.current_state == ESTABLISHED

    def open_bell(self) -> None:
        """Get ready to serve."""
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def close_bell(self) -> None:
        """Leave nothing open; harmless when nothing is."""
        with self._bell_lock:
            if self._bell != _NO_BELL:
                os.close(self._bell)
                self._bell = _NO_BELL

    def send_pdu(self, primitive: Any) -> None:
        """Queue a primitive for the peer and wake the thread that sends it."""
        super().send_pdu(primitive)
        self._ring()

    def run(self) -> None:
        """Serve in a thread of its own; nothing is left open when it ends."""
        self.open_bell()
        try:
            super().run()
        except Exception as error:  # noqa: BLE001 - a thread's loop: the peer's bytes provoked it
            self._give_up(error)
        finally:
            self.close_bell()

    def kill_dul(self) -> None:
        """End the serving, wherever it waits."""
        super().kill_dul()
        self._ring()

    def receive_pdu(self, wait: bool = False, timeout: float | None = None) -> Any:
        """Return the next primitive of the peer; None when there is none (in time)."""
        if wait and self.is_threadless:
            self._serve_until_received(timeout)
        return super().receive_pdu(wait and not self.is_threadless, timeout)

    def send_pending(self) -> None:
        """Send what is queued for the peer; for the association's thread, if that serves."""
        while self.to_provider_queue.queue and self._process_recv_primitive():
            self.state_machine.do_action(self.event_queue.get(block=False))

    def serve_queued(self) -> None:
        """Do what is to do without waiting for the peer."""
        try:
            while not self._kill_thread and (
                self.event_queue.queue or self._process_recv_primitive()
            ):
                self.state_machine.do_action(self.event_queue.get(block=False))
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._give_up(error)

    def finish(self) -> None:
        """Serve until the connection is closed; without effect when nothing leads there."""
        try:
            while self._has_more_to_do():
                self._serve_once()
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._give_up(error)

    def _has_more_to_do(self) -> bool:
        state = self.state_machine.current_state
        if self._kill_thread or state == IDLE:
            return False
        is_queued = bool(self.event_queue.queue or self.to_provider_queue.queue)
        return is_queued or state not in _NOTHING_TO_WAIT_FOR

    def _serve_until_received(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not (self._kill_thread or self.to_user_queue.queue):
                if deadline is not None and time.monotonic() > deadline:
                    return
                self._serve_once()
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._give_up(error)

    def _serve_once(self) -> None:
        """Go once through what pynetdicom's own loop does."""
        if self.artim_timer.expired:
            self.event_queue.put(ARTIM_EXPIRED)
        if not self._process_recv_primitive() and self._is_transport_event():
            self._idle_timer.restart()
        if self.event_queue.queue:
            self.state_machine.do_action(self.event_queue.get(block=False))

    def _give_up(self, error: Exception) -> None:
        """Abort at once, bypassing the state machine, whose action failed."""
        self._send(_provider_abort())
        self.assoc.is_aborted = True
        self.assoc.is_established = False
        self._kill_thread = True
        # Whoever waits for the request or for a message must not wait for its timeout.
        self.to_user_queue.put(cast("Any", None))
        self.tell_fault(f"what it sent cannot be served ({type(error).__name__})")

    def _is_transport_event(self) -> bool:
        if self.event_queue.empty():
            self._wait()
        return bool(super()._is_transport_event())

    def _wait(self) -> None:
        """Wait until the peer sends, a primitive is queued, or a timer may have run out."""
        poll = select.poll()
        if self._bell != _NO_BELL:
            poll.register(self._bell, select.POLLIN)
        wrapper = self.socket
        connection = None if wrapper is None else wrapper.socket
        if connection is not None and connection.fileno() >= 0:
            if isinstance(connection, ssl.SSLSocket) and connection.pending():
                return
            poll.register(connection, select.POLLIN)
        for descriptor, _ in poll.poll(_LOOK_UP_SECONDS * 1000):
            if descriptor == self._bell:
                os.eventfd_read(self._bell)

    def _ring(self) -> None:
        # Without the lock, the number could belong to an instance's file by the time of the write.
        with self._bell_lock:
            if self._bell != _NO_BELL:
                os.eventfd_write(self._bell, 1)


def _provider_abort() -> A_ABORT_RQ:
    pdu = A_ABORT_RQ()
    pdu.source = 2
    pdu.reason_diagnostic = 0
    return pdu
