"""``python -m conv1d_ext``: prints the configuration and checks the kernels; the exit code says whether they passed."""

import sys

from .config import show_config

sys.exit(0 if show_config() else 1)
