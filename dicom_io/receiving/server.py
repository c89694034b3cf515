"""The Storage SCP: takes every storage SOP class in every transfer syntax, and Verification.

Owns the life of the port and the answer to each C-STORE; the door beside it decides who comes in.
Never decodes a data set, and must not know where instances go (the sink) or who listens in (the
observer).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from io import BytesIO
from types import TracebackType
from typing import Self, cast

from pydicom.dataset import Dataset
from pynetdicom import ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicom_io.errors import ReceiverNotStarted
from dicom_io.receiving.accepted import AcceptedAssociation
from dicom_io.receiving.access import (
    ANY,
    Peer,
    checked_ae_title,
)
from dicom_io.receiving.commands import StoreCommand, error_comment
from dicom_io.receiving.commitment import CommitmentSCP
from dicom_io.receiving.door import Door
from dicom_io.receiving.handover import Handover
from dicom_io.receiving.instances import (
    AssociationObserver,
    InstanceSink,
    StoreAnswer,
    StoreRequest,
)
from dicom_io.receiving.limits import OpenAssociations, ReceiverLimits
from dicom_io.receiving.listener import AssociationListener
from dicom_io.receiving.shared_places import SharedPlaces
from dicom_io.receiving.storing import StoreInProgress
from dicom_io.receiving.user_identity import Authenticates
from dicom_io.vocabulary import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

LOGGER = logging.getLogger(__name__)

DEFAULT_AE_TITLE = "MEDIMGD"
DEFAULT_PORT = 11112
"""The port the DICOM standard registers for servers without privileges (PS3.8 9.1.2)."""

STOP_WAIT_SECONDS = 10.0
"""How long open associations may take to finish when the receiver stops."""


class StorageServer:
    """Receives instances on one port and hands each to a sink.

    Parameters
    ----------
    sink : InstanceSink
        Decides each C-STORE's status; called by as many threads as there are associations.
    ae_titles : sequence of str
        The called AE titles we answer to; ``*`` among them answers to all.
    address : str
        Address to listen on; loopback unless configured otherwise.
    port : int
        0 takes any free port, told by `port` once started.
    peers : sequence of Peer
        Who may call; empty means this machine only (see `access.judge`).
    limits : ReceiverLimits
        Associations, PDU size and timeouts.
    observer : AssociationObserver, optional
        Told of associations opened, closed and refused.
    reuse_port : bool
        Let several receivers share the port.
    places : SharedPlaces, optional
        Counts open associations together with the other receivers that have it.
    handover : Handover, optional
        Evens out what the receivers that share the port have to do.
    is_congested : callable, optional
        Says why no association that may bring instances is taken at the moment, or "" when all is
        well; asked at each request, so it must be quick. Such a request is rejected as transient,
        temporary congestion; one for Verification alone is not.
    streams : bool
        Whether C-STORE goes from the socket to the sink as it arrives. False leaves it to
        pynetdicom, which gathers each data set in memory first: the reference that the tests
        compare with.
    ssl_context : ssl.SSLContext or callable, optional
        With it every connection must speak TLS (see `tls.server_context`). A callable is asked at
        each connection, so that a renewed certificate is taken up (see `tls.RenewedContext`).
    authenticates : callable, optional
        Knows the users (see `user_identity`). With it every request for an association must name
        one that is admitted; without it nobody is asked.
    commitment : CommitmentSCP, optional
        Answers requests for storage commitment; without it that service is not accepted.

    References
    ----------
    PS3.4 Annex A (Verification) and Annex B (Storage), PS3.7 sections 9.1.1 and 9.1.5.
    """

    def __init__(
        self,
        sink: InstanceSink,
        *,
        ae_titles: Sequence[str] = (DEFAULT_AE_TITLE,),
        address: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        peers: Sequence[Peer] = (),
        limits: ReceiverLimits | None = None,
        observer: AssociationObserver | None = None,
        reuse_port: bool = False,
        places: SharedPlaces | None = None,
        handover: Handover | None = None,
        is_congested: Callable[[], str] = str,
        streams: bool = True,
        ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
        authenticates: Authenticates | None = None,
        commitment: CommitmentSCP | None = None,
    ) -> None:
        self._sink = sink
        self._ae_titles = tuple(checked_ae_title(title, "ae_titles") for title in ae_titles)
        self._address = address
        self._wanted_port = port
        self._limits = limits or ReceiverLimits()
        self._observer = observer or AssociationObserver()
        self._reuse_port = reuse_port
        self._handover = handover
        self._streams = streams
        self._tls = _asked_each_time(ssl_context)
        self._commitment = commitment
        self._open = OpenAssociations(self._limits, places)
        self._door = Door(
            ae_titles=self._ae_titles,
            peers=peers,
            limits=self._limits,
            places=self._open,
            is_congested=is_congested,
            authenticates=authenticates,
            observer=self._observer,
        )
        self._listener: AssociationListener | None = None

    @property
    def port(self) -> int:
        """The port listened on; the configured one before the start."""
        if self._listener is None:
            return self._wanted_port
        return int(self._listener.server_address[1])

    @property
    def open_associations(self) -> int:
        """How many associations are open now."""
        return len(self._open)

    def start(self) -> None:
        """Take the port and begin to accept associations.

        Raises
        ------
        ReceiverNotStarted
            If the port is taken, not permitted, or the address is not this machine's.
        """
        try:
            self._listener = self._make_listener()
        except OSError as error:
            raise ReceiverNotStarted(
                f"cannot listen on {self._address} port {self._wanted_port}: "
                f"{error.strerror or error}. Stop what holds the port, or configure another "
                "address or port (ports below 1024 need a privilege)"
            ) from error
        self._door.is_closing = False
        self._listener.start()
        LOGGER.info(
            "receiving on %s port %d as %s",
            self._address,
            self.port,
            ", ".join(self._ae_titles),
            extra={"action": "receiver started"},
        )

    def stop(self, wait_seconds: float = STOP_WAIT_SECONDS) -> None:
        """Refuse new associations, let open ones finish, then abort those that did not."""
        if self._listener is None:
            return
        # Set first: a connection accepted a moment ago must not become an association now.
        self._door.is_closing = True
        self._listener.stop_listening()
        if not self._open.wait_until_none(wait_seconds):
            LOGGER.warning(
                "%d associations did not finish in %.0f s and are aborted",
                len(self._open),
                wait_seconds,
                extra={"action": "associations aborted"},
            )
        self._listener.end_associations()
        self._listener = None
        LOGGER.info("receiver stopped", extra={"action": "receiver stopped"})

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _make_listener(self) -> AssociationListener:
        ae = _application_entity(self._ae_titles, self._limits)
        if self._commitment is not None:
            ae.supported_contexts = [*ae.supported_contexts, self._commitment.context]
        listener = ae.make_server(
            (self._address, self._wanted_port),
            evt_handlers=[
                (evt.EVT_REQUESTED, self._door.judge_request),
                (evt.EVT_ESTABLISHED, self._on_established),
                (evt.EVT_CONN_CLOSE, _on_connection_closed),
                (evt.EVT_C_STORE, self._on_c_store),
                *(self._commitment.handlers() if self._commitment is not None else ()),
            ],
            server_class=AssociationListener,
            reuse_port=self._reuse_port,
            handover=self._handover,
            admits=self._door.admits_connection,
            on_turned_away=self._door.report,
            on_ended=self._on_ended,
            begin_store=self._begin_store if self._streams else None,
            silence_seconds=self._limits.network_timeout_seconds,
            tls=self._tls,
        )
        return cast("AssociationListener", listener)

    def _on_established(self, event: evt.Event) -> None:
        assoc = cast("AcceptedAssociation", event.assoc)
        assoc.allow_silence(self._limits.network_timeout_seconds)
        assoc.is_announced = True
        self._observer.on_opened(
            assoc.association_id, assoc.calling_ae_title, assoc.called_ae_title, assoc.address
        )

    def _on_ended(self, assoc: AcceptedAssociation) -> None:
        self._open.leave(assoc.association_id)
        if assoc.is_announced:
            self._observer.on_closed(assoc.association_id, assoc.end)

    def _begin_store(
        self, assoc: AcceptedAssociation, command: StoreCommand, transfer_syntax_uid: str
    ) -> StoreInProgress:
        request = StoreRequest(
            association_id=assoc.association_id,
            calling_ae_title=assoc.calling_ae_title,
            called_ae_title=assoc.called_ae_title,
            address=assoc.address,
            sop_class_uid=command.sop_class_uid,
            sop_instance_uid=command.sop_instance_uid,
            transfer_syntax_uid=transfer_syntax_uid,
        )
        return StoreInProgress(self._sink, request)

    def _on_c_store(self, event: evt.Event) -> Dataset:
        """Serve what reaches pynetdicom's own path: requests the data plane will not judge."""
        request = cast("C_STORE", event.request)
        command = StoreCommand(
            0, str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        )
        store = self._begin_store(
            cast("AcceptedAssociation", event.assoc), command, str(event.context.transfer_syntax)
        )
        with cast("BytesIO", request.DataSet).getbuffer() as data_set:
            if data_set:
                store.write(data_set)
            return _status_dataset(store.finish())


def _asked_each_time(
    context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None,
) -> Callable[[], ssl.SSLContext] | None:
    return (lambda: context) if isinstance(context, ssl.SSLContext) else context


def _on_connection_closed(event: evt.Event) -> None:
    cast("AcceptedAssociation", event.assoc).wake_if_never_requested()


def _application_entity(ae_titles: Sequence[str], limits: ReceiverLimits) -> ApplicationEntity:
    own = [title for title in ae_titles if title != ANY]
    ae = ApplicationEntity(ae_title=own[0] if own else DEFAULT_AE_TITLE)
    ae.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    ae.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    ae.maximum_pdu_size = limits.maximum_pdu_bytes
    ae.network_timeout = limits.network_timeout_seconds
    ae.acse_timeout = limits.request_timeout_seconds
    # The limit is ours to hold: pynetdicom's own also counts threads that wait or are ending.
    ae.maximum_associations = 2 * (limits.maximum_associations + limits.maximum_waiting)
    ae.add_supported_context(Verification, ALL_TRANSFER_SYNTAXES)
    return ae


def _status_dataset(answer: StoreAnswer) -> Dataset:
    ds = Dataset()
    ds.Status = int(answer.status)
    comment = error_comment(answer)
    if comment:
        ds.ErrorComment = comment
    return ds
