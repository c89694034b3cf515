"""Reports of a receiver, recorded in batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from storage_hospital import NOON, STUDY, seconds, watch_writes

from storage.arrivals import Arrival
from storage.associations import slots_with_open_associations
from storage.completion import CompletionRules, judge_receiving
from storage.door import list_refused_instances
from storage.dossier import read_dossier
from storage.errors import StorageError
from storage.reception import Closed, Opened, Refused, record_reports
from storage.reindexing import reindex
from storage.studies import get_study, list_studies

FIRST = Opened("a", "CT1", "MEDIMGD", "10.0.0.1")
RULES = CompletionRules(quiet_seconds=30)


def test_a_whole_association_is_recorded_in_one_transaction(hospital) -> None:
    arrivals = [Arrival(hospital.store(number), "a") for number in (1, 2, 3)]
    refused = Refused("no room", "CT1", "MEDIMGD", "10.0.0.1", 0xA700, "1.2.3", "1.2.4")
    writes = watch_writes(hospital.database)

    recorded = record_reports(
        hospital.database, [FIRST, *arrivals, refused, Closed("a")], "receiver-1", NOON
    )

    assert (recorded.new, len(writes)) == (3, 1)
    dossier = read_dossier(hospital.database, STUDY)
    assert dossier.study.instance_count == 3
    (association,) = dossier.associations
    assert (association.calling_ae_title, association.closed_at) == ("CT1", NOON)
    (kept,) = list_refused_instances(hospital.database)
    assert (kept.reason, kept.status, kept.sop_instance_uid) == ("no room", 0xA700, "1.2.4")


def test_an_association_that_ends_in_the_batch_that_ends_another_moves_its_study_only(
    hospital,
) -> None:
    other = Opened("b", "MR1", "MEDIMGD", "10.0.0.2")
    brought = Arrival(hospital.store(1), "a")
    record_reports(hospital.database, [FIRST, other, brought], "receiver-1", NOON)
    assert slots_with_open_associations(hospital.database) == ("receiver-1",)

    later = NOON + seconds(9)
    record_reports(hospital.database, [Closed("b"), Closed("a")], "receiver-1", later)

    assert get_study(hospital.database, STUDY).last_instance_at == later
    assert slots_with_open_associations(hospital.database) == ()


def test_a_batch_is_recorded_whole_or_not_at_all(hospital) -> None:
    good, bad = hospital.store(1), hospital.store(2)
    bad = replace(bad, header=replace(bad.header, instance_number=2**80))

    with pytest.raises(StorageError):
        record_reports(
            hospital.database, [FIRST, Arrival(good, "a"), Arrival(bad, "a")], "receiver-1", NOON
        )

    assert list_studies(hospital.database) == ()
    assert slots_with_open_associations(hospital.database) == ()


def test_a_study_waits_for_its_association_even_if_reindexing_was_quicker(hospital) -> None:
    stored = hospital.store(1)
    record_reports(hospital.database, [FIRST], "receiver-1", NOON)
    assert reindex(hospital.database, hospital.spool, NOON).recorded == 1

    again = record_reports(hospital.database, [Arrival(stored, "a")], "receiver-1", NOON)

    assert again.identical == 1
    (judgement,) = judge_receiving(hospital.database, RULES, NOON + seconds(60))
    assert judgement.reason == "1 open association(s) still bring instances"
