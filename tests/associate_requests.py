"""Requests for associations of every kind, drawn at random: usual, strange and damaged.

Owns what a requestor may write into an A-ASSOCIATE-RQ. Judges nothing and knows no library but for
its list of SOP classes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

from pynetdicom import AllStoragePresentationContexts

from tests import upper_layer as ul

_STORAGE = [str(each.abstract_syntax) for each in AllStoragePresentationContexts]
_NO_STORAGE = [
    ul.VERIFICATION,
    "1.2.840.10008.1.20.1",  # Storage Commitment Push Model
    "1.2.840.10008.5.1.4.31",  # Modality Worklist
    "1.2.840.10008.5.1.4.1.2.1.1",  # Patient Root C-FIND
    "1.2.840.10008.1.2",  # a transfer syntax
]
_STRANGE = [
    "1.2.826.0.1.3680043.2.1",
    "1.2.840.10008.5.1.4.99.1",
    "1.2.840.10008.5.1.4.1.1.2\0",
    "1.2.840.10008.5.1.4.1.1.2\0\0",
    " 1.2.840.10008.1.1 ",
    "1.2.03",
    "no UID at all",
    "1." + "2" * 62,
]
_IMPOSSIBLE = ["", "1." + "2" * 63, "1.2.\x80", " " * 70]
TRANSFER_SYNTAXES = [
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.201",
    "1.2.826.0.1.3680043.2.9",
]


def usual_request(count: int, rng: random.Random) -> bytes:
    """Return a request as senders make it, of `count` contexts with some transfer syntaxes each."""
    classes = [ul.VERIFICATION, *rng.sample(_STORAGE, count - 1)]
    contexts = [
        _context(2 * number + 1, uid, rng.sample(TRANSFER_SYNTAXES, rng.randint(1, 6)))
        for number, uid in enumerate(classes)
    ]
    return _request([*contexts, _user_information(rng, 0.0)])


def request_with_role(sop_class_uid: str, scu: int, scp: int) -> bytes:
    """Return a request for one class that proposes these roles for it."""
    role = _item(0x54, _counted(sop_class_uid.encode()) + bytes((scu, scp)))
    user_information = _item(0x50, _item(0x51, b"\0\0\1\0") + _item(0x52, b"1.2.3.4") + role)
    return _request([_context(1, sop_class_uid, TRANSFER_SYNTAXES), user_information])


def any_request(rng: random.Random) -> bytes:
    """Return a request that may be strange in any of its parts, and is readable in most cases."""
    strangeness = rng.choice((0.0, 0.01, 0.1, 0.4))
    contexts = [
        _any_context(rng, number, strangeness)
        for number in range(rng.choice((0, 1, 3, 3, 9, 20, 128)))
    ]
    items = [*contexts, *(_user_information(rng, strangeness) for _ in range(_mostly_one(rng)))]
    if rng.random() < strangeness:
        rng.shuffle(items)
    if rng.random() < strangeness:
        items.append(_item(rng.choice((0x10, 0x21, 0x40, 0x51, 0x7F)), rng.randbytes(4)))
    return _request(items, version=3 if rng.random() < strangeness / 4 else 1)


def damaged(request: bytes, rng: random.Random) -> bytes:
    """Return the request with some bytes changed; its own length stays true."""
    changed = bytearray(request)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(74, len(changed))] = rng.choice((0, 1, 0x20, 0x30, 0x40, 0xFF))
    if rng.random() < 0.2:
        del changed[rng.randrange(74, len(changed)) :]
    changed[2:6] = struct.pack(">L", len(changed) - 6)
    return bytes(changed)


def request_of(
    contexts: list[tuple[int, str, list[str]]],
    *,
    more: bytes = b"",
    more_information: bytes = b"",
    more_in_contexts: bytes = b"",
) -> bytes:
    """Return a request for contexts of ID, abstract and transfer syntaxes; none for "".

    `more` are items behind them, `more_information` are sub-items of the user information, and
    `more_in_contexts` those of each context.
    """
    items = [_item(0x20, _context(*each)[4:] + more_in_contexts) for each in contexts]
    information = _item(0x51, b"\0\0\1\0") + _item(0x52, b"1.2.3.4") + more_information
    return _request([*items, _item(0x50, information), more])


UNKNOWN_USER = struct.pack(">BBHBBH", 0x58, 0, 9, 6, 0, 3) + b"joe" + b"\0\0"
"""User identity of a type that the standard does not know."""
NAME_WITH_NUL = struct.pack(">BBH", 0x55, 0, 6) + b"OLDER\0"
"""An implementation version name that is padded as no text may be."""
UNKNOWN_ITEM = struct.pack(">BBH", 0x5F, 0, 3) + b"new"


def as_the_standard_reads_it(request: bytes) -> bytes:
    """Return the request without what an acceptor has to pass over, and pynetdicom fails on.

    - Items that the standard does not know, at the top, within a presentation context and within
      the user information: they are to be ignored (PS3.8 9.3.1), and no association is to be
      rejected because of their presence (PS3.8 D.2). So are users identified in an unknown way.
    - Who made the requestor, which decides nothing.
    - Role selections that propose neither role, which say as little as none (PS3.7 D.3.3.4).

    Where the items do not add up to the request, it is returned as it is.
    """
    try:
        items = [_as_read(kind, item) for kind, item in _items(request[74:]) if kind in _KNOWN]
    except ValueError:
        return request
    return ul.pdu(ul.ASSOCIATE_RQ, request[6:74] + b"".join(items))


_KNOWN = frozenset((0x10, 0x20, 0x21, 0x30, 0x40, *range(0x50, 0x5A)))


def _as_read(kind: int, item: bytes) -> bytes:
    if kind == 0x20:
        kept = (sub for sub_kind, sub in _items(item[8:]) if sub_kind in (0x30, 0x40))
        return _item(kind, item[4:8] + b"".join(kept))
    if kind != 0x50:
        return item
    return _item(kind, b"".join(sub for each, sub in _items(item[4:]) if _is_of_use(each, sub)))


def _is_of_use(kind: int, item: bytes) -> bool:
    if kind == 0x54:
        return not item.endswith(b"\0\0")
    if kind == 0x58:
        return len(item) > 4 and item[4] in range(1, 6)
    return kind in _KNOWN - {0x52, 0x55}


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at + 2 : at + 4], "big")
        if at + 4 > len(data) or end > len(data):
            raise ValueError("an item ends beyond what holds it")
        yield data[at], data[at:end]
        at = end


def _mostly_one(rng: random.Random) -> int:
    return rng.choice((1,) * 18 + (0, 2))


def _any_context(rng: random.Random, number: int, strangeness: float) -> bytes:
    context_id = 2 * number % 256 + 1
    if rng.random() < strangeness:
        context_id = rng.choice((1, 3, 255, 0, 2) if rng.random() < 0.2 else (1, 3, 5, 255))
    count = rng.choice((1, 2, 3, 3, 5, 40))
    syntaxes = [_any_uid(rng, TRANSFER_SYNTAXES, strangeness / 10) for _ in range(count)]
    classes = rng.choice((_STORAGE, _STORAGE, _STORAGE, _NO_STORAGE, _STRANGE))
    abstract = _any_uid(rng, classes, strangeness / 10)
    subs = [_item(0x30, abstract), *(_item(0x40, each) for each in syntaxes)]
    if rng.random() < strangeness / 4:
        rng.shuffle(subs)
        subs = subs[rng.randrange(2) : rng.randrange(1, len(subs) + 1)]
        subs += [_item(0x51, b"\0\0\1\0"), _item(0x30, abstract)][: rng.randrange(3)]
    return _item(0x20, bytes((context_id, 0, 0, 0)) + b"".join(subs))


def _any_uid(rng: random.Random, usual: list[str], strangeness: float) -> bytes:
    if rng.random() < strangeness:
        return rng.choice(_STRANGE + _IMPOSSIBLE).encode("latin-1")
    return rng.choice(usual).encode("latin-1")


def _user_information(rng: random.Random, strangeness: float) -> bytes:
    maximum = rng.choice((0, 16384, 65536)).to_bytes(4, "big")
    subs = [_item(0x51, maximum), _item(0x52, b"1.2.3.4"), _item(0x55, b"TESTED")]
    if rng.random() < strangeness:
        subs.append(_item(0x53, struct.pack(">HH", rng.randrange(3), rng.randrange(3))))
    if rng.random() < strangeness:
        kinds = (_role, _role, _extended, _common_extended)
        subs += [rng.choice(kinds)(rng) for _ in range(rng.randrange(9))]
    if rng.random() < strangeness:
        subs.append(_user_identity(rng))
    if rng.random() < strangeness:
        subs.insert(rng.randrange(len(subs) + 1), UNKNOWN_ITEM)
    return _item(0x50, b"".join(subs))


def _role(rng: random.Random) -> bytes:
    roles = bytes((rng.randrange(2), rng.randrange(2)))
    return _item(0x54, _counted(_class(rng)) + roles)


def _extended(rng: random.Random) -> bytes:
    return _item(0x56, _counted(_class(rng)) + rng.randbytes(rng.randint(1, 4)))


def _common_extended(rng: random.Random) -> bytes:
    return _item(0x57, _counted(_class(rng)) + _counted(b"1.2.840.10008.4.2") + _counted(b""))


def _user_identity(rng: random.Random) -> bytes:
    kind, asks = rng.randint(1, 5), rng.randrange(2)
    secondary = b"passcode" if kind == 2 else b""
    return _item(0x58, bytes((kind, asks)) + _counted(b"someone") + _counted(secondary))


def _class(rng: random.Random) -> bytes:
    return rng.choice(_STORAGE[:6] + _NO_STORAGE * 2).encode()


def _context(context_id: int, abstract_syntax: str, transfer_syntaxes: list[str]) -> bytes:
    subs = [_item(0x30, abstract_syntax.encode())] if abstract_syntax else []
    subs += [_item(0x40, each.encode()) for each in transfer_syntaxes]
    return _item(0x20, bytes((context_id, 0, 0, 0)) + b"".join(subs))


def _request(items: list[bytes], version: int = 1) -> bytes:
    titles = b"MEDIMGD".ljust(16) + b"SENDER".ljust(16)
    application_context = _item(0x10, b"1.2.840.10008.3.1.1.1")
    body = struct.pack(">HH", version, 0) + titles + bytes(32) + application_context
    return ul.pdu(ul.ASSOCIATE_RQ, body + b"".join(items))


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def _counted(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


ROLE_OF_CT = _item(0x54, _counted(ul.CT_IMAGE_STORAGE.encode()) + b"\1\0")
