"""Settings for the tests of the data pipeline."""

from hypothesis import settings

# The stores of these tests are flushed to disk: how long an example takes says how busy the machine is.
settings.register_profile("disk", deadline=None)
settings.load_profile("disk")
