"""One panel per step: choices in, a step's events and report out."""
