"""Rehearsals whose hostfile is made, and then broken, for the tests of the bring-up steps."""

from jaccl_kernel.hostfile.hostfile import Hostfile
from jaccl_kernel.rehearsal import plan
from jaccl_kernel.rehearsal.tools import facts
from jaccl_kernel.steps.hostfile.propose import propose
from jaccl_kernel.topology.facts import NodeFacts


def seen(hostfile: Hostfile) -> list[NodeFacts]:
    """What a scan of a rehearsal's Macs would find, without one."""
    told = plan.RehearsalPlan.of(hostfile)
    found = dict(zip(told.macs, facts(told.spec()), strict=True))
    return [found[host.name] for host in hostfile.hosts]


def configured(count: int = 2, *faults: str) -> Hostfile:
    """A rehearsal with the matrix of its healthy Macs, in which something broke since."""
    bare = plan.make_hostfile(count)
    made = propose(plan.as_if_real(bare), seen(bare)).hostfile
    assert made is not None
    return plan.with_changes(plan.runnable(made, bare), add=faults)
