"""For all tests."""

import signal

from hypothesis import HealthCheck, settings

# Whoever starts the tests in the background of a script (`make test &`) hands them a SIGINT that is
# ignored, and every program would inherit that. They are to take Ctrl-C as on a terminal.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long examples take says how busy the machine is, not whether the answers are right.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
