"""Routes between two Macs along their cables."""

from dataclasses import replace

from jaccl_kernel.nodes.transfer import Route
from jaccl_kernel.topology.facts import Address, ConnectedDevice, InterfaceFacts, NodeFacts, PortFacts
from jaccl_kernel.topology.routes import thunderbolt_routes
from jaccl_kernel.topology.wiring import build_wiring


def mac(number: int, ip: str | None, prefix: int | None = 30, *, bridge: str | None = None) -> NodeFacts:
    """One of two Macs that a cable joins; the bridge, if it has one, has the address."""
    port = PortFacts(
        number=1,
        domain_uuid=f"uuid{number}",
        interface="en3",
        current_gbps=80.0,
        plugged=(ConnectedDevice(domain_uuid=f"uuid{3 - number}"),),
    )
    address = (Address(ip, prefix),) if ip else ()
    interfaces = [InterfaceFacts("en3", ipv4=() if bridge else address, bridge=bridge)]
    if bridge:
        interfaces.append(InterfaceFacts(bridge, ipv4=address, members=("en3",)))
    return NodeFacts(f"mac{number}", f"mac{number}", ports=(port,), interfaces=tuple(interfaces))


def routes(one: NodeFacts, two: NodeFacts) -> tuple[Route, ...]:
    return thunderbolt_routes(build_wiring([one, two]), 0, 1)


def test_a_cable_whose_ports_share_a_network_is_a_route_in_both_directions() -> None:
    macs = (mac(1, "192.168.7.1"), mac(2, "192.168.7.2"))
    assert routes(*macs) == (Route("thunderbolt", "192.168.7.2", "192.168.7.1"),)
    assert thunderbolt_routes(build_wiring(macs), 1, 0) == (
        Route("thunderbolt", "192.168.7.1", "192.168.7.2"),
    )
    assert str(routes(*macs)[0]) == "over Thunderbolt (192.168.7.2)"


def test_self_assigned_addresses_are_a_route() -> None:
    assert routes(mac(1, "169.254.10.1", None), mac(2, "169.254.99.2", None))


def test_the_thunderbolt_bridge_is_a_route() -> None:
    macs = (mac(1, "169.254.10.1", 16, bridge="bridge0"), mac(2, "169.254.99.2", 16, bridge="bridge0"))
    assert routes(*macs) == (Route("thunderbolt", "169.254.99.2", "169.254.10.1"),)


def test_a_port_without_an_address_or_in_another_network_is_no_route() -> None:
    assert routes(mac(1, None), mac(2, "192.168.7.2")) == ()
    assert routes(mac(1, "192.168.7.1"), mac(2, "192.168.7.6")) == ()
    assert routes(mac(1, "192.168.7.1"), mac(2, "192.168.7.1")) == ()


def test_a_half_seen_cable_is_no_route() -> None:
    blind = replace(mac(2, "192.168.7.2"), ports=(PortFacts(1, "uuid2", "en3"),))
    assert routes(mac(1, "192.168.7.1"), blind) == ()
