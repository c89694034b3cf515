"""Who may open an association: called AE title, calling AE title and source network.

Owns the rules and the judgement as a pure function of them. Knows nothing of sockets or of
pynetdicom; the server turns a verdict into an A-ASSOCIATE-RJ.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
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
    """One rule of the door: this AE title from this network may, or may not, call."""

    ae_title: str
    """Exact calling AE title (case matters, PS3.5 6.2), or ``*`` for every caller."""
    network: IPv4Network | IPv6Network
    allow: bool = True
    """False bars whom the rule matches, out of a wider rule that admits them."""
    maximum_associations: int = 0
    """Open at the same time by this rule, beside the general limits; 0 for no limit of its own."""

    @classmethod
    def from_text(
        cls, ae_title: str, network: str, *, allow: bool = True, maximum_associations: int = 0
    ) -> Peer:
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
            allow,
            maximum_associations,
        )

    def matches(self, calling_ae_title: str | None, address: IPv4Address | IPv6Address) -> bool:
        """Return True when both the AE title and the address match; None is any title unnamed."""
        return self.ae_title in (ANY, calling_ae_title) and address in self.network

    @property
    def specificity(self) -> tuple[bool, int, bool]:
        """The greater, the more this rule says: title, then network; between equals, "no"."""
        return self.ae_title != ANY, self.network.prefixlen, not self.allow

    def __str__(self) -> str:
        text = f"ae_title = {json.dumps(self.ae_title)}, network = {json.dumps(str(self.network))}"
        text += "" if self.allow else ", allow = false"
        if self.maximum_associations:
            text += f", maximum_associations = {self.maximum_associations}"
        return f"{{ {text} }}"


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
    rule: Peer | None = None
    """The rule that decided; None when there is no rule, or none that matches."""


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
        The rules. Of those that match, the most specific decides: an exact AE title before
        ``*``, then the longest prefix; between equals the one that bars. What no rule matches is
        refused. An **empty** list admits every calling AE title, but only from this machine
        (loopback); as soon as there is one rule, loopback needs a rule of its own.
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
        return _only_loopback(calling, source)
    rule = _deciding_rule(peers, calling, source)
    if rule is None:
        return _calling_refused(peers, calling, source)
    if not rule.allow:
        return _barred(peers, rule, calling, source)
    return Verdict(admitted=True, rule=rule)


def judge_address(peers: Sequence[Peer], address: str) -> Verdict:
    """Decide on a connection by its source alone, before it can ask for an association.

    Parameters
    ----------
    peers : sequence of Peer
        The rules, as `judge` takes them; empty admits this machine only. An address is turned
        away when no AE title whatever would be admitted from it.
    address : str
        The source IP address, v4 or v6.
    """
    source = _plain_address(address)
    if not peers:
        return _only_loopback(None, source)
    titles = {None if peer.ae_title == ANY else peer.ae_title for peer in peers}
    rules = [rule for title in titles if (rule := _deciding_rule(peers, title, source))]
    if any(rule.allow for rule in rules):
        return Verdict(admitted=True)
    if rules:
        return _barred(peers, max(rules, key=lambda rule: rule.specificity), None, source)
    return Verdict(
        admitted=False,
        fault=AccessFaultValues.NETWORK,
        reason=f"no peer rule names a network that holds {source}: {_remedy(None, source)}",
    )


def _deciding_rule(
    peers: Iterable[Peer], calling: str | None, source: IPv4Address | IPv6Address
) -> Peer | None:
    matching = [peer for peer in peers if peer.matches(calling, source)]
    return max(matching, key=lambda peer: peer.specificity, default=None)


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
            f"called AE title {called!r} is not ours ({ours}): correct the sender, or set "
            f"receiver.ae_title = {json.dumps(called)} or receiver.accept_any_called_ae = true"
        ),
    )


def _only_loopback(calling: str | None, source: IPv4Address | IPv6Address) -> Verdict:
    if source.is_loopback:
        return Verdict(admitted=True)
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


def _barred(
    peers: Sequence[Peer], rule: Peer, calling: str | None, source: IPv4Address | IPv6Address
) -> Verdict:
    by_title = rule.ae_title != ANY
    remedy = "to admit it, remove that rule"
    # What is no more specific than the rule that bars would change nothing.
    if _suggestion(calling, source).specificity > rule.specificity:
        remedy = f"{_remedy(calling, source)}, or remove that rule"
    return Verdict(
        admitted=False,
        fault=AccessFaultValues.CALLING_AE_TITLE if by_title else AccessFaultValues.NETWORK,
        reason=(
            f"rule {peers.index(rule) + 1} of receiver.peers, {rule}, bars "
            f"{'it' if calling is None else repr(calling)} from {source}: {remedy}"
        ),
        rule=rule,
    )


def _remedy(calling: str | None, source: IPv4Address | IPv6Address) -> str:
    rule = _suggestion(calling, source)
    if calling is None:
        what = f'a rule with its ae_title and network = "{rule.network}"'
    else:
        what = str(rule)
    return f"to admit it, add to receiver.peers {what}"


def _suggestion(calling: str | None, source: IPv4Address | IPv6Address) -> Peer:
    # A title that breaks the rules of its kind can be admitted among all others only.
    title = calling if calling is not None and _is_ae_title(calling) else ANY
    # A scope id (fe80::1%eth0) is meaningless in a network, so the number alone is written.
    return Peer(title, ip_network(str(source).partition("%")[0]))


def _is_ae_title(value: str) -> bool:
    try:
        checked_ae_title(value, "calling AE title")
    except ValueError:
        return False
    return True
