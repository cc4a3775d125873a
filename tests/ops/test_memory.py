"""What the allocator is asked for, seen from outside: the memory that a process holds."""

import subprocess
import sys

import pytest

CODE = """
import sys, torch
from bdh import process
from bdh.ops.memory import keep_freed_memory, returning_freed_memory

if not keep_freed_memory():
    sys.exit(3)

def leave_holes():
    blocks = [torch.ones(2**22) for _ in range(16)]  # 256 MiB
    tiny = [torch.ones(2**8) for _ in range(16)]
    del blocks
    return tiny, process.resident()

def use_and_free():
    torch.ones(2**27)  # 512 MiB: more than any hole left above can serve
    return process.resident()

before = process.resident()
tiny, kept = leave_holes()
with returning_freed_memory():
    inside = process.resident()
    at_once = use_and_free()
after = use_and_free()
print(*((value - before) >> 20 for value in (kept, inside, at_once, after)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is of glibc")
def test_freed_memory_is_kept_between_steps_and_returned_beside_them() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 3:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    kept, inside, at_once, after = map(int, done.stdout.split())
    assert kept > 200  # the control: without the block it stays
    assert inside < 100
    assert at_once < 100
    assert after > 400  # and so again afterwards
