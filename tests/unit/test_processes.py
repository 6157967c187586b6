"""How a process ends."""

import subprocess
import sys

PROGRAM = """
import atexit, gc
from rest_core.processes import skip_last_collections
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # registered first, called last
skip_last_collections()
print(gc.get_freeze_count())
"""


def test_what_is_left_at_the_end_is_not_searched_for_garbage() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]
