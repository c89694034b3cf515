"""The receiver process: a Storage SCP whose instances go to the spool and then to the index.

Owns the answer to each C-STORE. Opens no pixel and calls no model; all it knows of a study is
where its files belong.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import ExitStack, closing

from daemon.backpressure import Backpressure
from daemon.committing import CommitmentDesk
from daemon.config import Config
from daemon.descriptors import allow_descriptors
from daemon.door import acceptor_context_of, authenticates_of, peers_of
from daemon.indexing import Bringing, Closed, IndexWriter, Opened, Refused
from daemon.logs import ACTION, ASSOCIATION, PEER, REASON, SOP_INSTANCE
from daemon.receiver_settings import ReceiverSection
from daemon.role import RoleProcess
from daemon.settings import MEBIBYTE
from daemon.settling import SpoolIndexing, settle_before_receiving
from dicom_io.errors import InvalidUID, MedimgdError, UnreadableInstance
from dicom_io.receiving.access import ANY
from dicom_io.receiving.commitment import CommitmentSCP
from dicom_io.receiving.handover import Handover
from dicom_io.receiving.instances import (
    STORED,
    AssociationEndValues,
    AssociationObserver,
    IncomingInstance,
    StoreAnswer,
    StoreRequest,
    TurnedAway,
)
from dicom_io.receiving.limits import ReceiverLimits
from dicom_io.receiving.part10 import file_prefix
from dicom_io.receiving.port_claim import PortClaim
from dicom_io.receiving.server import StorageServer
from dicom_io.receiving.shared_places import SharedPlaces
from dicom_io.results.request import SECONDARY_CAPTURE_CLASS_UID, SRClassValues
from dicom_io.statuses import StoreStatusValues, describe
from dicom_io.vocabulary import InstanceHeader
from storage.arrivals import Arrival, StoreOutcome
from storage.database import Database
from storage.documents import is_own_sop_instance_uid
from storage.errors import SpoolFailure
from storage.incoming import IncomingFile
from storage.spool import Spool

_logger = logging.getLogger(__name__)

_RESULT_CLASSES = frozenset({*map(str, SRClassValues), SECONDARY_CAPTURE_CLASS_UID})
"""Only objects of these classes can be our own; the rest needs no look into the database."""


LONG_SECONDS = 2.0
"""An instance that takes longer tells the index of which study it is, which is not complete before
its association has ended: gigabytes over a slow line take longer than a study's quiet time."""


class OwnObject(MedimgdError):
    """One of our own results came back; it is acknowledged and not analysed."""

    retryable = False


class IndexEnded(MedimgdError):
    """The thread that writes the index is gone; nothing may be acknowledged any more."""

    retryable = True


class DataSetMismatch(MedimgdError):
    """The data set is not what the C-STORE command said."""

    retryable = False


class SpoolSink:
    """Stores instances in the spool and reports them to the index.

    Called by one thread per association. Success is answered only after the spool's file is
    synced under its final name.
    """

    def __init__(self, spool: Spool, index: IndexWriter, database: Database) -> None:
        self._spool = spool
        self._index = index
        self._database = database

    def begin(self, request: StoreRequest) -> IncomingInstance:
        """Open a file for one instance, or say why there can be none now."""
        if self._index.is_overloaded:
            return self._turn_away(request, "the index is behind, send again later")
        try:
            file = self._spool.begin(file_prefix(request), request.transfer_syntax_uid)
        except SpoolFailure as error:
            return self._turn_away(request, str(error))
        return SpooledInstance(self, request, file)

    def tell_of(self, request: StoreRequest, file: IncomingFile) -> bool:
        """Tell the index which study an instance on its way belongs to; False if not known yet."""
        uid = file.study_instance_uid()
        if uid:
            self._index.put(Bringing(request.association_id, uid))
        return bool(uid)

    def finish(self, request: StoreRequest, file: IncomingFile) -> StoreAnswer:
        """Store what arrived and answer for it."""
        try:
            stored = file.finish(lambda header: self._check(request, header))
        except OwnObject:
            _logger.info(
                "one of our own results came back and was ignored",
                extra={ACTION: "own_object", SOP_INSTANCE: request.sop_instance_uid},
            )
            return STORED
        except DataSetMismatch as error:
            return self.refuse(
                request, StoreStatusValues.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, str(error)
            )
        except (UnreadableInstance, InvalidUID) as error:
            return self.refuse(request, StoreStatusValues.CANNOT_UNDERSTAND, str(error))
        except SpoolFailure as error:
            return self.refuse(request, StoreStatusValues.OUT_OF_RESOURCES, str(error))
        self._index.put(Arrival(stored, request.association_id))
        if stored.outcome is StoreOutcome.CONFLICT:
            _logger.warning(
                "other content under a known SOP Instance UID was kept apart",
                extra={ACTION: "instance_conflict", SOP_INSTANCE: request.sop_instance_uid},
            )
        return STORED

    def _turn_away(self, request: StoreRequest, reason: str) -> TurnedAway:
        return TurnedAway(self.refuse(request, StoreStatusValues.OUT_OF_RESOURCES, reason))

    def _check(self, request: StoreRequest, header: InstanceHeader) -> None:
        """Compare the command with the data set before the file gets its final name."""
        if header.sop_instance_uid != request.sop_instance_uid:
            raise DataSetMismatch(
                f"SOPInstanceUID: command {request.sop_instance_uid}, "
                f"data set {header.sop_instance_uid}"
            )
        if header.sop_class_uid != request.sop_class_uid:
            raise DataSetMismatch(
                f"SOPClassUID: command {request.sop_class_uid}, data set {header.sop_class_uid}"
            )
        composed_here = header.sop_class_uid in _RESULT_CLASSES and is_own_sop_instance_uid(
            self._database, header.sop_instance_uid
        )
        if header.is_own or composed_here:
            raise OwnObject("our own result")

    def refuse(self, request: StoreRequest, status: StoreStatusValues, reason: str) -> StoreAnswer:
        """Log and index why an instance is not taken, and return the answer that says so."""
        _logger.warning(
            "an instance from %s was answered %s: %s",
            request.calling_ae_title, describe(status), reason,
            extra={ACTION: "instance_refused", SOP_INSTANCE: request.sop_instance_uid,
                   ASSOCIATION: request.association_id, REASON: describe(status)},
        )  # fmt: skip
        self._index.put(
            Refused(
                reason,
                request.calling_ae_title,
                request.called_ae_title,
                request.address,
                int(status),
                request.sop_class_uid,
                request.sop_instance_uid,
            )
        )
        return StoreAnswer(status, reason)


class SpooledInstance:
    """One instance on its way from an association into the spool."""

    def __init__(self, sink: SpoolSink, request: StoreRequest, file: IncomingFile) -> None:
        self._sink = sink
        self._request = request
        self._file = file
        self._failure: StoreAnswer | None = None
        self._tell_at = time.monotonic() + LONG_SECONDS

    def write(self, fragment: memoryview) -> None:
        """Append to the file; a disk that fails is answered at the end, the rest is dropped."""
        if self._failure is not None:
            return
        try:
            self._file.write(fragment)
        except SpoolFailure as error:
            self._file.discard()
            self._failure = self._sink.refuse(
                self._request, StoreStatusValues.OUT_OF_RESOURCES, str(error)
            )
            return
        now = time.monotonic()
        if now >= self._tell_at:
            is_told = self._sink.tell_of(self._request, self._file)
            self._tell_at = math.inf if is_told else now + LONG_SECONDS

    def finish(self) -> StoreAnswer:
        """Store the file under its final name and answer."""
        return self._failure or self._sink.finish(self._request, self._file)

    def discard(self) -> None:
        """Remove what was written, unless it has become an instance."""
        self._file.discard()


class IndexedAssociations(AssociationObserver):
    """Keeps the index told of associations, so that completion can wait for them."""

    def __init__(self, index: IndexWriter) -> None:
        self._index = index

    def on_opened(
        self, association_id: str, calling_ae_title: str, called_ae_title: str, address: str
    ) -> None:
        """Record it; a study it brings is not complete before it ends."""
        _logger.info(
            "association from %s", calling_ae_title,
            extra={ACTION: "association_opened", ASSOCIATION: association_id, PEER: address},
        )  # fmt: skip
        self._index.put(Opened(association_id, calling_ae_title, called_ae_title, address))

    def on_closed(self, association_id: str, end: AssociationEndValues) -> None:
        """Record the end."""
        _logger.info(
            "association ended: %s", end,
            extra={ACTION: "association_closed", ASSOCIATION: association_id, REASON: str(end)},
        )  # fmt: skip
        self._index.put(Closed(association_id))

    def on_refused(
        self, calling_ae_title: str, called_ae_title: str, address: str, reason: str
    ) -> None:
        """Record who was turned away and what would admit them."""
        self._index.put(Refused(reason, calling_ae_title, called_ae_title, address))


def make_server(
    section: ReceiverSection,
    sink: SpoolSink,
    observer: AssociationObserver,
    places: SharedPlaces | None = None,
    backpressure: Backpressure | None = None,
    desk: CommitmentDesk | None = None,
    claim: PortClaim | None = None,
) -> StorageServer:
    """Return the Storage SCP that the configuration describes, not yet started."""
    titles = (section.ae_title, ANY) if section.accept_any_called_ae else (section.ae_title,)
    return StorageServer(
        sink,
        ae_titles=titles,
        address=section.address,
        port=section.port,
        peers=peers_of(section),
        limits=ReceiverLimits(
            maximum_associations=section.maximum_associations,
            maximum_associations_per_address=section.maximum_associations_per_address,
            network_timeout_seconds=section.network_timeout_seconds,
            request_timeout_seconds=section.request_timeout_seconds,
        ),
        observer=observer,
        reuse_port=claim is not None,
        places=places,
        handover=Handover(claim, places) if claim is not None and places is not None else None,
        is_congested=str if backpressure is None else lambda: backpressure.reason,
        ssl_context=acceptor_context_of(section.tls),
        authenticates=authenticates_of(section),
        commitment=None if desk is None else CommitmentSCP(desk),
    )


def run_receiver(config: Config, database: Database, slot: str) -> None:
    """Receive until a stop is asked for; then refuse, finish what is open, and flush the index."""
    section = config.receiver
    allow_descriptors(section.maximum_associations)
    spool = Spool(config.spool_folder, section.minimum_free_mib * MEBIBYTE, slot=slot)
    settle_before_receiving(config, database, spool, slot)
    role = RoleProcess(config, database, "receiver", slot)
    # Before the port is open: whoever was served may not be cut off by a stop.
    role.heed_signals()
    with ExitStack() as stack:  # what is entered last ends first
        places = stack.enter_context(closing(SharedPlaces(config.places_path)))
        claim = None
        if section.process_count > 1:
            claim = PortClaim(section.address, section.port, installation_of(config))
            stack.enter_context(claim)
        index = stack.enter_context(closing(IndexWriter(database, slot)))
        desk = None
        if section.storage_commitment:
            desk = stack.enter_context(closing(CommitmentDesk(config, database, spool)))
        backpressure = Backpressure(section, database, spool)
        backpressure.look()
        server = stack.enter_context(
            make_server(
                section,
                SpoolSink(spool, index, database),
                IndexedAssociations(index),
                places,
                backpressure,
                desk,
                claim,
            )
        )
        stack.enter_context(SpoolIndexing(config, database, spool))
        _receive_until_stopped(role, server, index, backpressure)


def installation_of(config: Config) -> str:
    """Return what the receivers that may share a port have in common: their data folder."""
    return str(config.site.data_folder.resolve())


def _receive_until_stopped(
    role: RoleProcess, server: StorageServer, index: IndexWriter, backpressure: Backpressure
) -> None:
    place = {"address": role.config.receiver.address, "port": server.port}
    role.begin({**place, "congested": backpressure.reason})
    while index.is_alive and not role.wait(1.0):
        if backpressure.look():
            role.describe({**place, "congested": backpressure.reason})
    server.stop()
    role.end()
    if not index.is_alive:
        raise IndexEnded("the index writer ended: the receiver starts anew")
