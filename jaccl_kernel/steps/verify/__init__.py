"""Verify: the checks that prove that the Macs form one group, in order."""
