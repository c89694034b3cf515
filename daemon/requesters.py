"""Where a requester of storage commitment listens, and what makes it known.

Owns the choice among `receiver.peers` and `destinations`. Must not know what it is told there.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from daemon.config import Config
from daemon.confirming import peer_of
from daemon.receiver_settings import PeerSection
from dicom_io.association import Destination
from dicom_io.commitment import CommitmentRequest

CONNECT_SECONDS = 5.0
ASSOCIATION_SECONDS = 15.0
RESPONSE_SECONDS = 30.0
"""A modality may be busy with a patient when its report comes."""

_ANY = "*"


def requester_address(request: CommitmentRequest, config: Config) -> Destination | None:
    """Return where to report to; None when no setting says so.

    The most specific rule of `receiver.peers` that fits the requester and has a port, else a
    destination of the same AE title.
    """
    rules = [rule for rule in config.receiver.peers if rule.port and _fits(rule, request)]
    if rules:
        rule = max(rules, key=_specificity)
        return _at(rule.host or request.address, rule.port or 0, request)
    same = [each for each in config.destinations if each.ae_title == request.calling_ae_title]
    return peer_of(same[0], config) if same else None


def remedy(request: CommitmentRequest) -> str:
    """Return the configuration that would let this requester be told later."""
    address = _plain(request.address)
    network = f"{address}/{ip_address(address).max_prefixlen}"
    return (
        f"no port is known for {request.calling_ae_title!r} at {address}: give its rule in "
        f'receiver.peers one, {{ ae_title = "{request.calling_ae_title}", network = "{network}", '
        "port = 104 }"
    )


def _fits(rule: PeerSection, request: CommitmentRequest) -> bool:
    known = rule.ae_title.strip() in (_ANY, request.calling_ae_title)
    network = ip_network(rule.network.strip(), strict=False)
    return known and rule.allow and ip_address(_plain(request.address)) in network


def _specificity(rule: PeerSection) -> tuple[bool, int]:
    network = ip_network(rule.network.strip(), strict=False)
    return rule.ae_title.strip() != _ANY, network.prefixlen


def _plain(address: str) -> str:
    """Return an IPv4 caller of an IPv6 socket as rules name it, and no scope."""
    parsed = ip_address(address.partition("%")[0])
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _at(host: str, port: int, request: CommitmentRequest) -> Destination:
    return Destination(
        request.calling_ae_title, host, port, request.calling_ae_title,
        # The requester knows us by the title it called.
        request.called_ae_title,
        connect_timeout_seconds=CONNECT_SECONDS,
        association_timeout_seconds=ASSOCIATION_SECONDS,
        response_timeout_seconds=RESPONSE_SECONDS,
    )  # fmt: skip
