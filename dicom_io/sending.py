"""The Storage SCU: sends encoded instances as they are and keeps each one's status.

Owns the negotiation of exactly the contexts that are needed and the order of sending. Never
re-encodes a data set; must not know what the instances mean or how often they are tried.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicom_io.association import (
    MAXIMUM_CONTEXTS,
    Context,
    Destination,
    accepts,
    hold_reactor,
    open_association,
)
from dicom_io.errors import AssociationFailed, InstanceUnavailable, UnreadableInstance
from dicom_io.reading import machine_faults
from dicom_io.statuses import describe, is_delivered

CONTEXT_REFUSED = "presentation context not accepted"
OUT_OF_STEP = "not answered: the peer answered another message than the one it was sent"

_T = TypeVar("_T")

_MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True, slots=True)
class OutgoingInstance:
    """One instance to be sent: a whole DICOM file and what must be negotiated for it."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data: bytes = field(repr=False)
    """Part 10 file: preamble, file meta information, data set."""

    @property
    def context(self) -> Context:
        """What has to be negotiated to send it."""
        return Context(self.sop_class_uid, self.transfer_syntax_uid)


@dataclass(frozen=True, slots=True)
class SendOutcome:
    """What the peer said to one instance."""

    sop_instance_uid: str
    status: int | None
    """The C-STORE response's status, verbatim; None when there was no answer."""
    comment: str = ""
    """Error Comment (0000,0902) of the answer, or why there is none."""
    context_refused: bool = False
    """The peer does not take this SOP class in this transfer syntax; trying again cannot help."""

    @property
    def is_delivered(self) -> bool:
        """True when the peer says it holds the instance: Success or a Bxxx warning."""
        return self.status is not None and is_delivered(self.status)

    def __str__(self) -> str:
        what = "not sent" if self.status is None else describe(self.status)
        return f"{what}: {self.comment}" if self.comment else what


@dataclass(frozen=True, slots=True)
class PathOutcome:
    """What became of one file."""

    path: Path
    outcome: SendOutcome


@dataclass(frozen=True, slots=True)
class EchoOutcome:
    """What became of a C-ECHO."""

    ok: bool
    seconds: float
    detail: str
    """A sentence for the administrator."""


@dataclass(frozen=True, slots=True)
class _StoredFile:
    """A file on disk, read no further than its file meta information."""

    path: Path
    sop_instance_uid: str
    context: Context


def send(
    destination: Destination,
    instances: Sequence[OutgoingInstance],
    *,
    is_last: Callable[[SendOutcome], bool] = lambda _: False,
) -> tuple[SendOutcome, ...]:
    """Send instances in this order on one association.

    Parameters
    ----------
    destination : Destination
        The peer.
    instances : sequence of OutgoingInstance
        What is sent.
    is_last : callable
        Asked of every outcome; after one of which it is true, nothing more is sent.

    Returns
    -------
    tuple of SendOutcome
        One for each instance that was reached, in the same order. When the association breaks in
        the middle, what was answered is kept and the rest has status None.

    Raises
    ------
    AssociationFailed
        If no association could be opened, so that nothing was sent.
    """
    if not instances:
        return ()
    contexts = sorted({instance.context for instance in instances})
    outcomes: list[SendOutcome] = []
    with closing(_send_all(destination, contexts, instances)) as coming:
        for outcome in coming:
            outcomes.append(outcome)
            if is_last(outcome):
                break
    return tuple(outcomes)


def send_paths(destination: Destination, paths: Iterable[Path]) -> Iterator[PathOutcome]:
    """Send DICOM files, folders with all they hold, each file in its own transfer syntax.

    Outcomes are yielded as they become known: first the files that cannot be sent at all, then
    the others in the order of `paths`, on as many associations as their contexts need. When one
    after the first cannot be opened, its files have status None.

    Raises
    ------
    AssociationFailed
        If the first association could not be opened, so that nothing was sent.
    """
    files: list[_StoredFile] = []
    for path in _files_below(paths):
        try:
            files.append(_stored_file(path))
        except (UnreadableInstance, InstanceUnavailable) as error:
            yield PathOutcome(path, SendOutcome("", None, str(error)))
    planned = plan_associations(files, lambda file: file.context)
    for number, (contexts, group) in enumerate(planned):
        outcomes = _send_all(destination, contexts, group)
        try:
            yield from (
                PathOutcome(file.path, outcome)
                for file, outcome in zip(group, outcomes, strict=True)
            )
        except AssociationFailed as error:
            if number == 0:
                raise
            for file in group:
                yield PathOutcome(file.path, SendOutcome(file.sop_instance_uid, None, str(error)))


def echo(destination: Destination) -> EchoOutcome:
    """Verify that the peer answers on the DICOM level; never raises for a peer that does not."""
    started = time.monotonic()
    context = Context(Verification, ImplicitVRLittleEndian)
    try:
        with open_association(destination, [context]) as assoc:
            problem = _echo_problem(assoc)
    except AssociationFailed as error:
        problem = str(error)
    seconds = time.monotonic() - started
    if problem:
        return EchoOutcome(ok=False, seconds=seconds, detail=problem)
    return EchoOutcome(ok=True, seconds=seconds, detail=f"{destination} answers")


def plan_associations(
    items: Iterable[_T], context_of: Callable[[_T], Context], limit: int = MAXIMUM_CONTEXTS
) -> list[tuple[list[Context], list[_T]]]:
    """Split items into groups that each need at most `limit` presentation contexts.

    Order is kept within a group. An item joins the first group that has its context or room for
    it, so files of few kinds stay on one association.
    """
    groups: list[tuple[list[Context], list[_T]]] = []
    group_of: dict[Context, int] = {}
    for item in items:
        context = context_of(item)
        if context not in group_of:
            if not groups or len(groups[-1][0]) >= limit:
                groups.append(([], []))
            group_of[context] = len(groups) - 1
            groups[-1][0].append(context)
        groups[group_of[context]][1].append(item)
    return groups


def _send_all(
    destination: Destination,
    contexts: Sequence[Context],
    sources: Sequence[OutgoingInstance | _StoredFile],
) -> Generator[SendOutcome]:
    is_lost = False
    with open_association(destination, contexts) as assoc:
        answered = deque[int]() if assoc is None else _answered_messages(assoc)
        for number, source in enumerate(sources):
            if assoc is None or not accepts(assoc, source.context):
                yield SendOutcome(source.sop_instance_uid, None, CONTEXT_REFUSED, True)
            elif is_lost:
                yield SendOutcome(source.sop_instance_uid, None, "not tried: association had ended")
            else:
                outcome = _send_one(assoc, source, number % 0xFFFF + 1, answered)
                is_lost = outcome.status is None
                yield outcome


def _answered_messages(assoc: Association) -> deque[int]:
    """Return where the Message IDs that the peer responds to will come in, in order.

    pynetdicom takes the next response for the answer to what it sent last: a peer that answers one
    instance twice would be believed to hold the next one, which it may have refused.
    """
    answered: deque[int] = deque()

    def note(event: evt.Event) -> None:
        command_set = event.message.command_set
        if "MessageIDBeingRespondedTo" in command_set:
            answered.append(int(command_set.MessageIDBeingRespondedTo))

    assoc.bind(evt.EVT_DIMSE_RECV, note)
    return answered


def _send_one(
    assoc: Association,
    source: OutgoingInstance | _StoredFile,
    message_id: int,
    answered: deque[int],
) -> SendOutcome:
    try:
        with _path_of(source) as path:
            hold_reactor(assoc)
            answer = assoc.send_c_store(path, msg_id=message_id)
    except RuntimeError:  # What pynetdicom raises on an association that has ended.
        answer = Dataset()
    except OSError as error:
        # Half a message may have left, so this association cannot carry another one.
        assoc.abort()
        comment = f"cannot be read here, try again later: {error.strerror or error}"
        return SendOutcome(source.sop_instance_uid, None, comment)
    if "Status" not in answer:
        comment = "no answer: the peer was silent or broke the association"
        return SendOutcome(source.sop_instance_uid, None, comment)
    if not answered or answered.popleft() != message_id:
        assoc.abort()
        return SendOutcome(source.sop_instance_uid, None, OUT_OF_STEP)
    comment = str(answer.get("ErrorComment", "") or "")
    return SendOutcome(source.sop_instance_uid, int(answer.Status), comment)


@contextmanager
def _path_of(source: OutgoingInstance | _StoredFile) -> Iterator[Path]:
    """Give the path that pynetdicom needs: it sends encoded bytes untouched only from a file.

    Bytes in memory get a path in memory, so that nothing of a patient outlives this process.
    """
    if isinstance(source, _StoredFile):
        yield source.path
        return
    descriptor = os.memfd_create("medimgd-send")
    with os.fdopen(descriptor, "wb") as file:
        file.write(source.data)
        file.flush()
        yield Path(f"/proc/self/fd/{descriptor}")


def _echo_problem(assoc: Association | None) -> str:
    if assoc is None:
        return "the peer accepts associations but not the Verification service"
    hold_reactor(assoc)
    answer = assoc.send_c_echo()
    if "Status" not in answer:
        return "the peer accepted the association but did not answer the C-ECHO"
    status = int(answer.Status)
    return "" if status == 0 else f"the peer answered the C-ECHO with {describe(status)}"


def _files_below(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(found for found in path.rglob("*") if found.is_file())
        else:
            yield path


def _stored_file(path: Path) -> _StoredFile:
    try:
        with machine_faults(path):
            meta = read_file_meta_info(path)
        sop_class_uid = str(meta.MediaStorageSOPClassUID)
        sop_instance_uid = str(meta.MediaStorageSOPInstanceUID)
        transfer_syntax_uid = str(meta.TransferSyntaxUID)
    except (OSError, InvalidDicomError, AttributeError, ValueError, EOFError) as error:
        raise UnreadableInstance(
            "not a DICOM file with file meta information (PS3.10): nothing to negotiate by"
        ) from error
    if sop_class_uid == _MEDIA_STORAGE_DIRECTORY:
        raise UnreadableInstance("a DICOMDIR: an index of files, not an instance to send")
    return _StoredFile(path, sop_instance_uid, Context(sop_class_uid, transfer_syntax_uid))
