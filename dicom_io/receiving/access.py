"""Who may open an association: called AE title, calling AE title and source network.

Owns the rules and the judgement as a pure function of them. Knows nothing of sockets or of
pynetdicom; the server turns a verdict into an A-ASSOCIATE-RJ.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

ANY = "*"
"""As a calling AE title: every caller. Among our own AE titles: every called AE title."""


AE_TITLE_MAX_LENGTH = 16


def checked_ae_title(value: str, field: str) -> str:
    """Return `value` without surrounding spaces if it is an AE title.

    Raises
    ------
    ValueError
        If it is empty, longer than 16 characters, or holds a backslash, a control character or
        one outside ASCII (PS3.5 6.2).
    """
    title = value.strip()
    if not 0 < len(title) <= AE_TITLE_MAX_LENGTH:
        rule = f"must have 1 to {AE_TITLE_MAX_LENGTH} characters"
    elif "\\" in title or not (title.isascii() and title.isprintable()):
        rule = "must be printable ASCII without backslash"
    else:
        return title
    raise ValueError(f"{field} {rule} (PS3.5 6.2, AE): received {value!r}")


@dataclass(frozen=True, slots=True)
class Peer:
    """One rule of the allow-list: this AE title may call from this network."""

    ae_title: str
    """Exact calling AE title (case matters, PS3.5 6.2), or ``*`` for every caller."""
    network: IPv4Network | IPv6Network

    @classmethod
    def from_text(cls, ae_title: str, network: str) -> Peer:
        """Build a rule from configuration text; a bare address is a network of one host.

        Host bits do not count: ``10.1.8.5/24`` is the network ``10.1.8.0/24``.

        Raises
        ------
        ValueError
            If the AE title breaks its rules, or the network is none.
        """
        return cls(
            checked_ae_title(ae_title, "ae_title of a peer"),
            ip_network(network.strip(), strict=False),
        )

    def admits(self, calling_ae_title: str, address: IPv4Address | IPv6Address) -> bool:
        """Return True when both the AE title and the address match this rule."""
        return self.ae_title in (ANY, calling_ae_title) and address in self.network


class AccessFaultValues(StrEnum):
    """What about a request for an association is not allowed."""

    CALLED_AE_TITLE = "called AE title"
    CALLING_AE_TITLE = "calling AE title"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an association is admitted and, if not, why and what would admit it."""

    admitted: bool
    fault: AccessFaultValues | None = None
    reason: str = ""
    """A sentence for the administrator; empty when admitted."""


_ADMITTED = Verdict(admitted=True)


def judge(
    peers: Sequence[Peer],
    calling_ae_title: str,
    called_ae_title: str,
    address: str,
    own_ae_titles: Collection[str],
) -> Verdict:
    """Decide on a request for an association before anything is negotiated or stored.

    Parameters
    ----------
    peers : sequence of Peer
        The allow-list. An **empty** list admits every calling AE title, but only from this
        machine (loopback). As soon as there is one rule, the rules alone decide, so loopback
        then needs a rule of its own.
    calling_ae_title, called_ae_title : str
        As received; leading and trailing spaces do not count (PS3.5 6.2).
    address : str
        The source IP address, v4 or v6. An IPv4-mapped IPv6 address counts as IPv4.
    own_ae_titles : collection of str
        The AE titles we answer to; ``*`` among them answers to every title.

    References
    ----------
    PS3.8 section 9.3.4, Table 9-21 (reasons of an A-ASSOCIATE-RJ).
    """
    calling, called = calling_ae_title.strip(), called_ae_title.strip()
    if called not in own_ae_titles and ANY not in own_ae_titles:
        return _called_title_refused(called, own_ae_titles)
    source = _plain_address(address)
    if not peers:
        return _ADMITTED if source.is_loopback else _outside_loopback(calling, source)
    if any(peer.admits(calling, source) for peer in peers):
        return _ADMITTED
    return _calling_refused(peers, calling, source)


def judge_address(peers: Sequence[Peer], address: str) -> Verdict:
    """Decide on a connection by its source alone, before it can ask for an association.

    Parameters
    ----------
    peers : sequence of Peer
        The allow-list, as `judge` takes it; empty admits this machine only.
    address : str
        The source IP address, v4 or v6.
    """
    source = _plain_address(address)
    if not peers:
        return _ADMITTED if source.is_loopback else _outside_loopback(None, source)
    if any(source in peer.network for peer in peers):
        return _ADMITTED
    return Verdict(
        admitted=False,
        fault=AccessFaultValues.NETWORK,
        reason=f"no peer rule names a network that holds {source}: {_remedy(None, source)}",
    )


def _plain_address(address: str) -> IPv4Address | IPv6Address:
    parsed = ip_address(address)
    # A socket bound to "::" reports IPv4 callers as ::ffff:a.b.c.d; rules are written as a.b.c.d.
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


def _called_title_refused(called: str, own_ae_titles: Collection[str]) -> Verdict:
    ours = ", ".join(repr(title) for title in sorted(own_ae_titles)) or "none"
    return Verdict(
        admitted=False,
        fault=AccessFaultValues.CALLED_AE_TITLE,
        reason=(
            f"called AE title {called!r} is not ours ({ours}): "
            f"correct the sender, or add {called!r} to ae_titles"
        ),
    )


def _outside_loopback(calling: str | None, source: IPv4Address | IPv6Address) -> Verdict:
    return Verdict(
        admitted=False,
        fault=AccessFaultValues.NETWORK,
        reason=(
            "no peer is configured, so only this machine may connect; "
            f"received a call from {source}: {_remedy(calling, source)}"
        ),
    )


def _calling_refused(
    peers: Sequence[Peer], calling: str, source: IPv4Address | IPv6Address
) -> Verdict:
    known = any(peer.ae_title in (ANY, calling) for peer in peers)
    what = (
        f"calling AE title {calling!r} is known, but not from {source}"
        if known
        else f"no peer rule names calling AE title {calling!r} (received from {source})"
    )
    return Verdict(
        admitted=False,
        fault=AccessFaultValues.NETWORK if known else AccessFaultValues.CALLING_AE_TITLE,
        reason=f"{what}: {_remedy(calling, source)}",
    )


def _remedy(calling: str | None, source: IPv4Address | IPv6Address) -> str:
    # A scope id (fe80::1%eth0) is meaningless in a network, so the number alone is written.
    bare = str(source).partition("%")[0]
    network = f"{bare}/{source.max_prefixlen}"
    title = "its ae_title" if calling is None else f"ae_title = {calling!r}"
    return f"to admit it, add a peer with {title} and network = {network!r}"
