"""Studies that an earlier version began: their contents are digested as it digested them.

Owns that a study keeps one algorithm for life, so that the same instance stays the same, and the
same set of instances the same set, removed and sent again included. Files are read here, before
the transaction that records: within it nobody waits for a disk.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from sqlalchemy import select

from dicom_io.errors import UnreadableInstance
from storage import schema
from storage.arrivals import Arrival, StoreOutcome
from storage.contents import DigestAlgorithm, content_digest
from storage.database import Database
from storage.errors import translated_file_error
from storage.prepared import among, as_list

_OTHERWISE = select(schema.study.c.study_instance_uid, schema.study.c.content_algorithm).where(
    among(schema.study.c.study_instance_uid, "uids"),
    schema.study.c.content_algorithm != DigestAlgorithm.BLAKE3,
)


def redigested(database: Database, arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Return the arrivals, those of earlier versions' studies with the digests of then.

    What this says stays right until it is recorded: a study is begun with the algorithm of this
    version, and keeps its own. What came again and is gone keeps the digest it came with: retention
    may have removed it, and whoever records passes it by.

    Raises
    ------
    SpoolFailure
        A file cannot be read now. A digest of another algorithm in its place would look like
        other content, and be recorded as that for good.
    UnreadableInstance
        A file was damaged, or taken away, since it was stored.
    """
    uids = {each.stored.header.study_instance_uid for each in arrivals}
    algorithms = _other_algorithms(database, uids)
    return [
        _redigested(each, algorithms[uid])
        if (uid := each.stored.header.study_instance_uid) in algorithms
        else each
        for each in arrivals
    ]


def _other_algorithms(database: Database, uids: Collection[str]) -> dict[str, DigestAlgorithm]:
    if not uids:
        return {}
    with database.read() as connection:
        rows = connection.execute(_OTHERWISE, {"uids": as_list(uids)})
        return {uid: DigestAlgorithm(algorithm) for uid, algorithm in rows}


def _redigested(arrival: Arrival, algorithm: DigestAlgorithm) -> Arrival:
    path = arrival.stored.path
    try:
        digest = content_digest(path, algorithm)
    except FileNotFoundError as error:
        if arrival.stored.outcome is not StoreOutcome.NEW:
            return arrival
        # Retention removes nothing that has no row yet.
        raise UnreadableInstance(f"{path} is gone since it was stored: send it again") from error
    except OSError as error:
        raise translated_file_error(error, f"read {path}") from error
    return replace(arrival, stored=replace(arrival.stored, content_digest=digest))
