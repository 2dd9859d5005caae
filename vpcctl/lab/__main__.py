"""The process behind a `Lab`."""

import sys

from vpcctl.lab.lab import hold

sys.exit(hold())
