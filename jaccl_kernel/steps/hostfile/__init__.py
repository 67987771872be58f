"""Hostfile: derive a hostfile from the facts of the Macs."""
