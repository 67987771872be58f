"""Which ports local ranks meet at."""

import socket

import pytest

from jaccl_kernel.errors import Busy, InputError
from jaccl_kernel.jobs import ports
from jaccl_kernel.jobs.run import with_port
from jaccl_kernel.jobs.spec import JobSpec
from jaccl_kernel.rehearsal.homes import make_hostfile


def test_ports_that_the_program_listens_on_are_left_to_it() -> None:
    first = ports.choose(2)
    assert ports.choose(2, besides=[first + 1, 8080]) not in (first, first + 1)
    with pytest.raises(InputError, match=f"port {first + 1} is where the ranks meet"):
        ports.choose(2, first, besides=[first + 1])


def test_a_port_that_someone_listens_on_is_not_chosen() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Busy, match="in use"):
            ports.choose(1, taken.getsockname()[1])


def test_a_server_gets_no_port_where_its_ranks_meet() -> None:
    spec = JobSpec(hostfile=make_hostfile(2), program=("smoke",), backend="ring", starting_port=None)
    chosen = with_port(spec).starting_port
    assert chosen
    assert with_port(spec, besides=(chosen,)).starting_port not in (None, chosen, chosen - 1)
