"""Who may open an association."""

from __future__ import annotations

import tomllib

import pytest

from dicom_io.receiving.access import AccessFaultValues, Peer, judge, judge_address

OURS = ("MEDIMGD",)
CT = Peer.from_text("CT1", "10.0.0.0/24")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_without_rules_this_machine_is_admitted(address):
    assert judge([], "ANYONE", "MEDIMGD", address, OURS).admitted


@pytest.mark.parametrize("address", ["10.0.0.5", "192.168.1.1", "fe80::1", "::ffff:10.0.0.5"])
def test_without_rules_other_machines_are_refused(address):
    verdict = judge([], "CT1", "MEDIMGD", address, OURS)

    assert not verdict.admitted
    assert verdict.fault is AccessFaultValues.NETWORK
    assert "no peer is configured" in verdict.reason


def test_a_rule_admits_its_title_from_its_network():
    assert judge([CT], "CT1", "MEDIMGD", "10.0.0.77", OURS).admitted


def test_with_a_rule_loopback_is_no_longer_admitted_by_itself():
    assert not judge([CT], "CT1", "MEDIMGD", "127.0.0.1", OURS).admitted


def test_spaces_around_titles_do_not_count():
    assert judge([CT], " CT1 ", "MEDIMGD  ", "10.0.0.77", OURS).admitted


def test_case_of_titles_counts():
    assert not judge([CT], "ct1", "MEDIMGD", "10.0.0.77", OURS).admitted


def test_a_star_admits_every_title_from_its_network():
    rule = Peer.from_text("*", "2001:db8::/32")

    assert judge([rule], "WHOEVER", "MEDIMGD", "2001:db8::17", OURS).admitted
    assert not judge([rule], "WHOEVER", "MEDIMGD", "2001:db9::17", OURS).admitted


def test_host_bits_of_a_network_do_not_count():
    rule = Peer.from_text("CT1", "10.1.8.5/24")

    assert rule == Peer.from_text("CT1", "10.1.8.0/24")
    assert judge([rule], "CT1", "MEDIMGD", "10.1.8.200", OURS).admitted


def test_an_ipv4_caller_on_an_ipv6_socket_matches_ipv4_rules():
    assert judge([CT], "CT1", "MEDIMGD", "::ffff:10.0.0.77", OURS).admitted


def test_the_second_of_two_rules_admits_too():
    rules = [CT, Peer.from_text("CT1", "10.9.0.0/16")]

    assert judge(rules, "CT1", "MEDIMGD", "10.9.4.4", OURS).admitted


def test_an_unknown_title_is_refused_with_the_rule_that_would_admit_it():
    verdict = judge([CT], "MR9", "MEDIMGD", "10.0.0.5", OURS)

    assert verdict.fault is AccessFaultValues.CALLING_AE_TITLE
    assert '{ ae_title = "MR9", network = "10.0.0.5/32" }' in verdict.reason


def test_a_known_title_from_elsewhere_is_a_fault_of_the_network():
    verdict = judge([CT], "CT1", "MEDIMGD", "2001:db8::5", OURS)

    assert verdict.fault is AccessFaultValues.NETWORK
    assert 'network = "2001:db8::5/128"' in verdict.reason


def test_the_suggested_rule_does_admit():
    suggested = Peer.from_text("CT1", "fe80::1/128")

    assert judge([suggested], "CT1", "MEDIMGD", "fe80::1%eth0", OURS).admitted
    refused = judge([CT], "CT1", "MEDIMGD", "fe80::1%eth0", OURS)
    assert 'network = "fe80::1/128"' in refused.reason


def test_a_called_title_that_is_not_ours_is_refused_before_all_else():
    verdict = judge([CT], "MR9", "OTHER", "192.168.0.1", OURS)

    assert verdict.fault is AccessFaultValues.CALLED_AE_TITLE
    assert 'receiver.ae_title = "OTHER"' in verdict.reason


def test_a_star_among_our_titles_answers_to_every_title():
    assert judge([CT], "CT1", "OTHER", "10.0.0.5", ["*"]).admitted


@pytest.mark.parametrize(
    ("ae_title", "network"),
    [
        ("", "10.0.0.0/8"),
        ("A" * 17, "10.0.0.0/8"),
        ("A\\B", "10.0.0.0/8"),
        ("CTÄ", "10.0.0.0/8"),
        ("CT1", "10.0.0.0/33"),
        ("CT1", "hospital"),
        ("CT1", ""),
    ],
)
def test_a_rule_that_is_none_is_refused(ae_title, network):
    with pytest.raises(ValueError, match=r"AE|network|address"):
        Peer.from_text(ae_title, network)


def test_an_address_in_any_rule_may_ask_for_an_association():
    assert judge_address([CT, Peer.from_text("MR1", "10.9.0.0/16")], "10.9.1.1").admitted
    assert judge_address([CT], "::ffff:10.0.0.77").admitted


def test_an_address_outside_every_rule_may_not_even_ask():
    verdict = judge_address([CT], "10.9.1.1")

    assert not verdict.admitted
    assert verdict.fault is AccessFaultValues.NETWORK
    assert 'a rule with its ae_title and network = "10.9.1.1/32"' in verdict.reason


def test_without_rules_only_this_machine_may_ask():
    assert judge_address([], "127.0.0.1").admitted
    refused = judge_address([], "10.0.0.5")
    assert "no peer is configured" in refused.reason
    assert 'network = "10.0.0.5/32"' in refused.reason


WARD = Peer.from_text("*", "10.1.8.0/24")
BARRED_HOST = Peer.from_text("*", "10.1.8.66/32", allow=False)
REMOVE_ONLY = ": to admit it, remove that rule"


def suggested(reason: str) -> Peer:
    """Return the rule that a reason says would admit the caller, read as the daemon reads it."""
    table = reason[reason.rindex("{") : reason.rindex("}") + 1]
    return Peer.from_text(**tomllib.loads(f"peer = {table}")["peer"])


@pytest.mark.parametrize("rules", [[WARD, BARRED_HOST], [BARRED_HOST, WARD]])
def test_one_host_may_be_barred_in_a_network_that_is_admitted(rules):
    assert judge(rules, "CT1", "MEDIMGD", "10.1.8.65", OURS).admitted

    verdict = judge(rules, "CT1", "MEDIMGD", "10.1.8.66", OURS)

    assert not verdict.admitted
    position = rules.index(BARRED_HOST) + 1
    assert f"rule {position} of receiver.peers" in verdict.reason
    assert '{ ae_title = "*", network = "10.1.8.66/32", allow = false }' in verdict.reason


def test_one_host_may_be_admitted_in_a_network_that_is_barred():
    rules = [Peer.from_text("*", "10.0.0.0/8", allow=False), Peer.from_text("*", "10.1.8.5/32")]

    assert judge(rules, "CT1", "MEDIMGD", "10.1.8.5", OURS).admitted
    assert not judge(rules, "CT1", "MEDIMGD", "10.1.8.6", OURS).admitted


def test_an_exact_title_decides_before_a_longer_prefix():
    rules = [BARRED_HOST, Peer.from_text("CT1", "10.0.0.0/8")]

    assert judge(rules, "CT1", "MEDIMGD", "10.1.8.66", OURS).admitted
    assert not judge(rules, "CT2", "MEDIMGD", "10.1.8.66", OURS).admitted


def test_between_equal_rules_the_one_that_bars_decides():
    rules = [WARD, Peer.from_text("*", "10.1.8.0/24", allow=False)]

    assert not judge(rules, "CT1", "MEDIMGD", "10.1.8.5", OURS).admitted


def test_a_title_may_be_barred_from_everywhere():
    rules = [Peer.from_text("*", "0.0.0.0/0"), Peer.from_text("OLD", "0.0.0.0/0", allow=False)]

    verdict = judge(rules, "OLD", "MEDIMGD", "10.0.0.5", OURS)

    assert verdict.fault is AccessFaultValues.CALLING_AE_TITLE
    assert judge(rules, "NEW", "MEDIMGD", "10.0.0.5", OURS).admitted


@pytest.mark.parametrize(
    ("rules", "calling", "address"),
    [
        ([CT], "MR9", "10.0.0.5"),
        ([CT], "CT1", "2001:db8::5"),
        ([CT], 'A"B', "10.9.9.9"),
        ([CT], "", "10.9.9.9"),
        ([WARD, BARRED_HOST], "CT1", "10.1.8.66"),
        ([], "CT1", "10.0.0.5"),
    ],
)
def test_the_rule_that_a_refusal_suggests_does_admit(rules, calling, address):
    refused = judge(rules, calling, "MEDIMGD", address, OURS)
    assert not refused.admitted

    mended = [*rules, suggested(refused.reason)]

    assert judge(mended, calling, "MEDIMGD", address, OURS).admitted


def test_a_rule_that_bars_exactly_this_caller_has_to_go():
    rules = [WARD, Peer.from_text("CT1", "10.1.8.66/32", allow=False), BARRED_HOST]

    assert judge(rules, "", "MEDIMGD", "10.1.8.66", OURS).reason.endswith(REMOVE_ONLY)
    verdict = judge(rules, "CT1", "MEDIMGD", "10.1.8.66", OURS)

    assert verdict.reason.endswith(REMOVE_ONLY)


def test_the_verdict_names_the_rule_that_decided():
    rules = [WARD, Peer.from_text("PACS", "10.1.8.0/24", maximum_associations=12)]

    assert judge(rules, "PACS", "MEDIMGD", "10.1.8.5", OURS).rule == rules[1]
    assert judge(rules, "CT1", "MEDIMGD", "10.1.8.5", OURS).rule == WARD
    assert "maximum_associations = 12" in str(rules[1])


def test_a_barred_address_may_not_even_ask():
    verdict = judge_address([WARD, BARRED_HOST], "10.1.8.66")

    assert not verdict.admitted
    assert "rule 2 of receiver.peers" in verdict.reason
    assert judge_address([WARD, BARRED_HOST], "10.1.8.65").admitted


def test_a_barred_address_may_ask_when_one_title_is_admitted_from_it():
    rules = [BARRED_HOST, Peer.from_text("CT1", "10.1.8.66/32")]

    assert judge_address(rules, "10.1.8.66").admitted
