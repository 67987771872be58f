"""What all tests of this room share."""

from hypothesis import settings

# A busy machine is no reason to fail: no test here asserts a time.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
