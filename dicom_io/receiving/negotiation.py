"""The negotiation of an association: pynetdicom's outcome without doing its work again each time.

Owns the way from the bytes of a request to those of its acceptance. pynetdicom makes, checks and
copies an object for every UID at each of five steps, 18 ms for 128 presentation contexts; here it
is asked once for each UID and the answer is remembered. Where it fails on a request that the
standard lets pass, the standard holds. Must not know who is admitted.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, cast

from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.acse import ACSE
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_items import (
    PDU_ITEM_TYPES,
    AbstractSyntaxSubItem,
    ApplicationContextItem,
    PDUItem,
    PresentationContextItemRQ,
    TransferSyntaxSubItem,
    UserInformationItem,
)
from pynetdicom.pdu_primitives import A_ASSOCIATE, SCP_SCU_RoleSelectionNegotiation
from pynetdicom.presentation import (
    PresentationContext,
    negotiate_as_acceptor,
    negotiate_unrestricted,
)

from dicom_io.receiving.access import checked_ae_title
from dicom_io.receiving.upper_layer import (
    ACCEPTED,
    AWAITING_ANSWER,
    AWAITING_CLOSE,
    ESTABLISHED,
    REQUESTED,
)

_REMEMBERED = 4096
"""UIDs of each kind; the standard has some hundreds, and a peer may invent any number."""
_LONGEST_REMEMBERED = 80
"""Bytes of an item: a UID has up to 64, but may be sent with any number of spaces around it."""

_ASSOCIATE_RQ, _ASSOCIATE_AC = 0x01, 0x02
_CONTEXT_RQ, _CONTEXT_AC = 0x20, 0x21
_SYNTAXES = frozenset((0x30, 0x40))
_USER_INFORMATION, _ROLES, _USER_IDENTITY = 0x50, 0x54, 0x58
_IMPLEMENTATION = frozenset((0x52, 0x55))
"""Implementation class UID and version name."""
_USER_IDENTITY_TYPES = frozenset(bytes([kind]) for kind in range(1, 6))
_NEITHER_ROLE = b"\0\0"
_TAKEN = 0x00
_NO_ABSTRACT_SYNTAX, _NO_TRANSFER_SYNTAX = 0x03, 0x04
"""A result of a presentation context (PS3.8 Table 9-18): this syntax is not supported."""
_VERSION = 0x0001
_ITEM_HEAD = struct.Struct(">BxH")
_CONTEXT_AC_HEAD = struct.Struct(">BxHBxBx")
_TITLES_AT, _CALLING_AT, _TITLES_END = 10, 26, 42
_CONTEXT_ID_AT = 4
_SUB_ITEMS_AT = 8


class UnusableTitle(ValueError):
    """An AE title of a request breaks the rules of its kind; the text says which and how."""


class AssociateRequest(A_ASSOCIATE_RQ):
    """An A-ASSOCIATE-RQ whose presentation contexts are read quickly."""

    @property
    def pdu_type(self) -> int:
        """The PDU type, which pynetdicom finds by the exact class."""
        return _ASSOCIATE_RQ

    def decode(self, bytestream: bytes) -> None:
        """Take over what the bytes of the PDU say; raises whatever they provoke.

        ``UnusableTitle`` where that is an AE title.
        """
        request = _with_spaces(bytestream)
        try:
            super().decode(request)
        except ValueError:
            _check_titles(request)
            raise
        # Bit 0 stands for version 1; the others are not to be tested (PS3.8 Table 9-11).
        if self.protocol_version & _VERSION:
            self.protocol_version = _VERSION

    def _wrap_generate_items(self, bytestream: bytes) -> list[PDUItem]:
        items: list[PDUItem] = []
        for kind, data in self._generate_items(bytestream):
            kind_of_item = _REQUEST_ITEMS.get(kind)
            if kind_of_item is not None:  # A later edition of the standard may know more.
                item = kind_of_item()
                item.decode(data)
                items.append(item)
        return items


def _with_spaces(request: bytes) -> bytes:
    """Return the request with its AE titles padded as they should be; old devices take NULs."""
    called, calling = request[_TITLES_AT:_CALLING_AT], request[_CALLING_AT:_TITLES_END]
    if b"\0" not in called and b"\0" not in calling:
        return request
    titles = b"".join(each.strip(b"\0 ").ljust(len(each)) for each in (called, calling))
    return request[:_TITLES_AT] + titles + request[_TITLES_END:]


def _check_titles(request: bytes) -> None:
    if len(request) < _TITLES_END:
        return
    called, calling = request[_TITLES_AT:_CALLING_AT], request[_CALLING_AT:_TITLES_END]
    for title, field in ((called, "called AE title"), (calling, "calling AE title")):
        try:
            checked_ae_title(title.strip(b"\0 ").decode("latin-1"), field)
        except ValueError as error:
            raise UnusableTitle(str(error)) from error


class _ProposedInformation(UserInformationItem):
    @property
    def item_type(self) -> int:
        return _USER_INFORMATION

    def _wrap_generate_items(self, bytestream: bytes) -> list[Any]:
        return [
            _item(data) for kind, data in self._generate_items(bytestream) if _is_of_use(kind, data)
        ]


def _is_of_use(kind: int, data: bytes) -> bool:
    """Tell whether a sub-item of the user information says anything that can be answered.

    Unknown sub-items, and users identified in a way that the standard does not know, are to be
    ignored (PS3.8 9.3.1, PS3.7 D.3.3.7). To propose neither role for a class says as little as to
    propose none. Who made the sender is of interest to nobody, so that no association fails over a
    name that is too long or ends in NUL.
    """
    if kind == _USER_IDENTITY:
        return data[_ITEM_HEAD.size : _ITEM_HEAD.size + 1] in _USER_IDENTITY_TYPES
    if kind == _ROLES:
        return not data.endswith(_NEITHER_ROLE)
    return kind in PDU_ITEM_TYPES and kind not in _IMPLEMENTATION


class _ProposedContext(PresentationContextItemRQ):
    @property
    def item_type(self) -> int:
        return _CONTEXT_RQ

    def decode(self, bytestream: bytes) -> None:
        self.presentation_context_id = bytestream[_CONTEXT_ID_AT]
        self.abstract_transfer_syntax_sub_items = items = []
        at, end = _SUB_ITEMS_AT, len(bytestream)
        while at < end:
            kind, length = _ITEM_HEAD.unpack_from(bytestream, at)
            data = bytestream[at : at + _ITEM_HEAD.size + length]
            at += _ITEM_HEAD.size + length
            if at > end:
                raise ValueError("a presentation context ends within a syntax")
            if kind in _SYNTAXES:  # All others are to be ignored (PS3.8 9.3.1).
                is_usual = len(data) <= _LONGEST_REMEMBERED
                items.append(_remembered_item(data) if is_usual else _item(data))

    def to_primitive(self) -> PresentationContext:
        # A dict, because a context may name thousands and each of them again and again.
        transfer_syntaxes: dict[UID, None] = {}
        abstract_syntax: UID | None = None
        for item in self.abstract_transfer_syntax_sub_items:
            if isinstance(item, TransferSyntaxSubItem):
                syntax = _as_transfer_syntax(item.transfer_syntax_name)
                if syntax is not None:
                    transfer_syntaxes[syntax] = None
            elif isinstance(item, AbstractSyntaxSubItem):
                abstract_syntax = _as_abstract_syntax(item.abstract_syntax_name)
        return _CheckedContext(
            self.presentation_context_id, abstract_syntax, list(transfer_syntaxes)
        )


_REQUEST_ITEMS: dict[int, Any] = {
    **PDU_ITEM_TYPES,
    _CONTEXT_RQ: _ProposedContext,
    _USER_INFORMATION: _ProposedInformation,
}


class _CheckedContext(PresentationContext):
    """A presentation context of UIDs that need no check: the setters make one every time."""

    def __init__(
        self,
        context_id: int | None,
        abstract_syntax: UID | None,
        transfer_syntaxes: list[UID],
        result: int | None = None,
    ) -> None:
        super().__init__()
        self.context_id = context_id
        self._abstract_syntax = abstract_syntax
        self._transfer_syntax = transfer_syntaxes
        self.result = result
        if result == _TAKEN:
            self._as_scu = self._as_scp = True


def _item(data: bytes) -> Any:
    item = PDU_ITEM_TYPES[data[0]]()
    item.decode(data)
    return item


# What raises is not remembered, so a bad UID is refused each time, at the step where it always was.
_remembered_item = lru_cache(_REMEMBERED)(_item)


@lru_cache(_REMEMBERED)
def _as_transfer_syntax(uid: UID | None) -> UID | None:
    context = PresentationContext()
    context.add_transfer_syntax(uid)
    return context.transfer_syntax[0] if context.transfer_syntax else None


@lru_cache(_REMEMBERED)
def _as_abstract_syntax(uid: UID | None) -> UID | None:
    context = PresentationContext()
    context.abstract_syntax = uid
    return context.abstract_syntax


@lru_cache(_REMEMBERED)
def _is_unrestricted(abstract_syntax: UID) -> bool:
    """Tell whether pynetdicom takes this class as storage, whatever contexts are supported."""
    context = _CheckedContext(1, abstract_syntax, [ImplicitVRLittleEndian])
    results, _ = negotiate_unrestricted([context], [])
    return results[0].result == _TAKEN


Outcome = tuple[list[PresentationContext], list[SCP_SCU_RoleSelectionNegotiation]]
Roles = dict[UID, tuple[bool | None, bool | None]]


def negotiate(
    proposed: list[PresentationContext], supported: list[PresentationContext], roles: Roles
) -> Outcome:
    """Return what `negotiate_unrestricted` of pynetdicom returns for the same arguments.

    A context that names no abstract syntax or no transfer syntax is refused by itself, where
    pynetdicom fails.

    Parameters
    ----------
    proposed : list of PresentationContext
        As the requestor proposes them.
    supported : list of PresentationContext
        What we accept beside storage. None of them is changed.
    roles : dict
        SCU and SCP role by SOP class, where the requestor proposes any.
    """
    storage: list[PresentationContext] = []
    others: list[PresentationContext] = []
    incomplete: list[PresentationContext] = []
    for context in proposed:
        abstract_syntax = context.abstract_syntax
        if not abstract_syntax or not context.transfer_syntax:
            incomplete.append(context)
        else:
            (storage if _is_unrestricted(abstract_syntax) else others).append(context)
    agreed: list[SCP_SCU_RoleSelectionNegotiation] = []
    if roles:
        # Few senders propose roles for storage, and each answer depends on all that went before.
        results, agreed = negotiate_unrestricted(others + storage, supported, cast("Any", roles))
    else:
        results, _ = negotiate_as_acceptor(others, supported)
        results += map(_taken, storage)
    results += map(_refused, incomplete)
    results.sort(key=lambda context: cast("int", context.context_id))
    return results, agreed


def _taken(proposed: PresentationContext) -> PresentationContext:
    first = proposed.transfer_syntax[0]
    return _CheckedContext(proposed.context_id, proposed.abstract_syntax, [first], _TAKEN)


def _refused(proposed: PresentationContext) -> PresentationContext:
    result = _NO_TRANSFER_SYNTAX if proposed.abstract_syntax else _NO_ABSTRACT_SYNTAX
    # The item has to name some transfer syntax; nobody reads that of a refused context.
    named = proposed.transfer_syntax[:1] or [ImplicitVRLittleEndian]
    return _CheckedContext(proposed.context_id, proposed.abstract_syntax, named, result)


class Negotiation(ACSE):
    """pynetdicom's association control without the steps that this receiver takes itself.

    Rules, users and limits are judged when the request arrives (`StorageServer`). Nothing that is
    negotiated beyond contexts and roles is answered, as pynetdicom has it when nobody handles it.
    """

    def _negotiate_as_acceptor(self) -> None:
        request = cast("A_ASSOCIATE", self.requestor.primitive)
        self.requestor.ae_title = request.calling_ae_title
        results, roles = negotiate(
            request.presentation_context_definition_list,
            self.acceptor.supported_contexts,
            {
                uid: (item.scu_role, item.scp_role)
                for uid, item in self.requestor.role_selection.items()
            },
        )
        taken = {cast("int", each.context_id): each for each in results if each.result == _TAKEN}
        # pynetdicom's own ACSE provider sets them so: there is no other way.
        self.assoc._accepted_cx = taken  # noqa: SLF001
        self.assoc._rejected_cx = [each for each in results if each.result != _TAKEN]  # noqa: SLF001
        for role in roles:
            self.acceptor.add_negotiation_item(role)
        self.send_accept()
        self.assoc.is_established = True
        evt.trigger(self.assoc, evt.EVT_ESTABLISHED, {})


class AcceptingStateMachine(StateMachine):
    """pynetdicom's state machine, sending an acceptance that is written quickly."""

    def do_action(self, event: str) -> None:
        """Execute the action of an event (PS3.8 Table 9-10)."""
        if (event, self.current_state) != (ACCEPTED, AWAITING_ANSWER):
            super().do_action(event)
            if (event, self.current_state) == (REQUESTED, AWAITING_CLOSE):
                # pynetdicom rejects it by itself, and nobody else would hear of it.
                cast("Any", self.dul).tell_fault("it asks for another version of the upper layer")
            return
        # AE-7: issue the A-ASSOCIATE-AC (PS3.8 Table 9-7).
        primitive = cast("A_ASSOCIATE", self.dul.to_provider_queue.get(block=False))
        self.dul._send(AssociateAcceptance(primitive))  # noqa: SLF001 - as all actions do
        self.transition(ESTABLISHED)


class AssociateAcceptance(A_ASSOCIATE_AC):
    """An A-ASSOCIATE-AC whose presentation contexts are written quickly."""

    @property
    def pdu_type(self) -> int:
        """The PDU type, which pynetdicom finds by the exact class."""
        return _ASSOCIATE_AC

    def from_primitive(self, primitive: A_ASSOCIATE) -> None:
        """Take over what the acceptance says."""
        self.reserved_aet = primitive.called_ae_title
        self.reserved_aec = primitive.calling_ae_title
        application_context = ApplicationContextItem()
        application_context.application_context_name = cast(
            "UID", primitive.application_context_name
        )
        user_information = UserInformationItem()
        user_information.from_primitive(primitive.user_information)
        results = _Results(primitive.presentation_context_definition_results_list)
        self.variable_items = [application_context, cast("Any", results), user_information]


class _Results(PDUItem):
    """All presentation context items of an acceptance, standing for one item."""

    def __init__(self, contexts: list[PresentationContext]) -> None:
        self._encoded = b"".join(map(_encoded_result, contexts))

    def encode(self) -> bytes:
        return self._encoded

    def __len__(self) -> int:
        return len(self._encoded)


def _encoded_result(context: PresentationContext) -> bytes:
    """Return one presentation context item (PS3.8 Table 9-18)."""
    syntax = _encoded_syntax(context.transfer_syntax[0])
    length = _CONTEXT_AC_HEAD.size - _ITEM_HEAD.size + len(syntax)
    return _CONTEXT_AC_HEAD.pack(_CONTEXT_AC, length, context.context_id, context.result) + syntax


@lru_cache(_REMEMBERED)
def _encoded_syntax(uid: UID) -> bytes:
    item = TransferSyntaxSubItem()
    item.transfer_syntax_name = uid
    return bytes(item.encode())
