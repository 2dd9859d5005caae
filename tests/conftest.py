"""Properties are tried with other examples each time, but in CI, where a run is to mean the same each time.

No property fails because the machine is busy: how long something takes is measured by benchmarks alone.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("patient", **PATIENT)
settings.register_profile("ci", derandomize=True, **PATIENT)
settings.load_profile("ci" if os.environ.get("CI") else "patient")
