"""The choice of ports for local ranks."""

import socket

import pytest

from jaccl_kernel.core.errors import Busy, InputError
from jaccl_kernel.launch import ports
from jaccl_kernel.launch.run import with_free_ports
from jaccl_kernel.launch.spec import JobSpec
from jaccl_kernel.rehearsal.homes import make_hostfile


def test_ports_of_the_program_are_not_chosen_for_the_ranks() -> None:
    first = ports.choose(2)
    assert ports.choose(2, reserved=[first + 1, 8080]) not in (first, first + 1)
    with pytest.raises(InputError, match=f"port {first + 1} is reserved for the ranks"):
        ports.choose(2, first, reserved=[first + 1])


def test_no_port_is_chosen_that_the_system_may_give_to_a_connection() -> None:
    assert ports.LAST < 32768, "where Linux begins; macOS begins at 49152"
    for count in (1, 8):
        firsts = {ports.choose(count) for _ in range(50)}
        assert all(ports.FIRST <= first <= ports.LAST - count for first in firsts)
        assert len(firsts) > 40, "two jobs that start together choose different ports"


def test_a_port_with_a_listener_is_not_chosen() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Busy, match="in use"):
            ports.choose(1, taken.getsockname()[1])


def test_the_port_of_a_server_is_not_used_by_its_ranks() -> None:
    spec = JobSpec(hostfile=make_hostfile(2), program=("smoke",), backend="ring", starting_port=None)
    chosen = with_free_ports(spec).starting_port
    assert chosen
    assert with_free_ports(spec, reserved=(chosen,)).starting_port not in (None, chosen, chosen - 1)
