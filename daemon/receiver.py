"""The receiver process: a Storage SCP whose instances go to the spool and then to the index.

Owns the answer to each C-STORE. Opens no pixel and calls no model; all it knows of a study is
where its files belong.
"""

from __future__ import annotations

import logging

from daemon.config import Config, ReceiverSection
from daemon.indexing import Closed, IndexWriter, Opened, Refused
from daemon.logs import ACTION, ASSOCIATION, COUNT, PEER, REASON, SOP_INSTANCE
from daemon.role import RoleProcess, now_utc
from dicom_io.errors import InvalidUID, MedimgdError, UnreadableInstance
from dicom_io.receiving.access import ANY, Peer
from dicom_io.receiving.instances import (
    STORED,
    AssociationObserver,
    ReceivedInstance,
    StoreAnswer,
)
from dicom_io.receiving.limits import ReceiverLimits
from dicom_io.receiving.part10 import file_prefix
from dicom_io.receiving.server import StorageServer
from dicom_io.results.request import SECONDARY_CAPTURE_CLASS_UID, SRClassValues
from dicom_io.statuses import StoreStatusValues, describe
from dicom_io.vocabulary import InstanceHeader
from storage.arrivals import Arrival, StoreOutcome
from storage.associations import close_associations_of
from storage.database import Database
from storage.errors import SpoolFailure
from storage.reindexing import reindex
from storage.results import is_own_sop_instance_uid
from storage.spool import Spool

_logger = logging.getLogger(__name__)

MEBIBYTE = 1024 * 1024

_RESULT_CLASSES = frozenset({*map(str, SRClassValues), SECONDARY_CAPTURE_CLASS_UID})
"""Only objects of these classes can be our own; the rest needs no look into the database."""


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

    Called by one thread per association. Success is answered only after ``Spool.store`` returned,
    when the file is synced under its final name.
    """

    def __init__(self, spool: Spool, index: IndexWriter, database: Database) -> None:
        self._spool = spool
        self._index = index
        self._database = database

    def store(self, received: ReceivedInstance) -> StoreAnswer:
        """Keep one instance; see the class."""
        if self._index.is_overloaded:
            return self._refuse(
                received,
                StoreStatusValues.OUT_OF_RESOURCES,
                "the index is behind, send again later",
            )
        try:
            stored = self._spool.store(
                file_prefix(received),
                received.data_set,
                lambda header: self._check(received, header),
            )
        except OwnObject:
            _logger.info(
                "one of our own results came back and was ignored",
                extra={ACTION: "own_object", SOP_INSTANCE: received.sop_instance_uid},
            )
            return STORED
        except DataSetMismatch as error:
            return self._refuse(
                received, StoreStatusValues.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, str(error)
            )
        except (UnreadableInstance, InvalidUID) as error:
            return self._refuse(received, StoreStatusValues.CANNOT_UNDERSTAND, str(error))
        except SpoolFailure as error:
            return self._refuse(received, StoreStatusValues.OUT_OF_RESOURCES, str(error))
        self._index.put(Arrival(stored, received.association_id))
        if stored.outcome is StoreOutcome.CONFLICT:
            _logger.warning(
                "other content under a known SOP Instance UID was kept apart",
                extra={ACTION: "instance_conflict", SOP_INSTANCE: received.sop_instance_uid},
            )
        return STORED

    def _check(self, received: ReceivedInstance, header: InstanceHeader) -> None:
        """Compare the command with the data set before the file gets its final name."""
        if header.sop_instance_uid != received.sop_instance_uid:
            raise DataSetMismatch(
                f"SOPInstanceUID: command {received.sop_instance_uid}, "
                f"data set {header.sop_instance_uid}"
            )
        if header.sop_class_uid != received.sop_class_uid:
            raise DataSetMismatch(
                f"SOPClassUID: command {received.sop_class_uid}, data set {header.sop_class_uid}"
            )
        composed_here = header.sop_class_uid in _RESULT_CLASSES and is_own_sop_instance_uid(
            self._database, header.sop_instance_uid
        )
        if header.is_own or composed_here:
            raise OwnObject("our own result")

    def _refuse(
        self, received: ReceivedInstance, status: StoreStatusValues, reason: str
    ) -> StoreAnswer:
        _logger.warning(
            "an instance from %s was answered %s: %s",
            received.calling_ae_title, describe(status), reason,
            extra={ACTION: "instance_refused", SOP_INSTANCE: received.sop_instance_uid,
                   ASSOCIATION: received.association_id, REASON: describe(status)},
        )  # fmt: skip
        self._index.put(
            Refused(
                reason,
                received.calling_ae_title,
                received.called_ae_title,
                received.address,
                int(status),
                received.sop_class_uid,
                received.sop_instance_uid,
            )
        )
        return StoreAnswer(status, reason)


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

    def on_closed(self, association_id: str) -> None:
        """Record the end."""
        _logger.info(
            "association ended",
            extra={ACTION: "association_closed", ASSOCIATION: association_id},
        )
        self._index.put(Closed(association_id))

    def on_refused(
        self, calling_ae_title: str, called_ae_title: str, address: str, reason: str
    ) -> None:
        """Record who was turned away and what would admit them."""
        self._index.put(Refused(reason, calling_ae_title, called_ae_title, address))


def make_server(
    section: ReceiverSection, sink: SpoolSink, observer: AssociationObserver
) -> StorageServer:
    """Return the Storage SCP that the configuration describes, not yet started."""
    titles = (section.ae_title, ANY) if section.accept_any_called_ae else (section.ae_title,)
    return StorageServer(
        sink,
        ae_titles=titles,
        address=section.address,
        port=section.port,
        peers=tuple(Peer.from_text(peer.ae_title, peer.network) for peer in section.peers),
        limits=ReceiverLimits(
            maximum_associations=section.maximum_associations,
            network_timeout_seconds=section.network_timeout_seconds,
        ),
        observer=observer,
    )


def run_receiver(config: Config, database: Database, slot: str) -> None:
    """Receive until a stop is asked for; then refuse, finish what is open, and flush the index."""
    spool = Spool(config.spool_folder, config.receiver.minimum_free_mib * MEBIBYTE, slot=slot)
    _settle_last_life(database, spool, slot)
    index = IndexWriter(database, slot)
    try:
        server = make_server(
            config.receiver, SpoolSink(spool, index, database), IndexedAssociations(index)
        )
        role = RoleProcess(config, database, "receiver", slot)
        server.start()
        role.begin({"address": config.receiver.address, "port": server.port})
        while index.is_alive and not role.wait(1.0):
            pass
        server.stop()
        role.end()
        if not index.is_alive:
            raise IndexEnded("the index writer ended: the receiver starts anew")
    finally:
        index.close()


def _settle_last_life(database: Database, spool: Spool, slot: str) -> None:
    """Make good what a killed predecessor left: half files, open associations, missing rows."""
    swept = spool.sweep_incoming()
    closed = close_associations_of(database, slot, now_utc())
    found = reindex(database, spool, now_utc())
    if swept or closed or found.recorded:
        _logger.info(
            "after the last end: %d half files removed, %d associations closed, "
            "%d instances indexed from the spool",
            swept, closed, found.recorded,
            extra={ACTION: "settled", COUNT: found.recorded},
        )  # fmt: skip
