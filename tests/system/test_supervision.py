"""`cortex up` keeps everything running, and leaves nothing behind."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from .conftest import CHILDREN, Cortex, CortexFactory, Ports

pytestmark = pytest.mark.system
