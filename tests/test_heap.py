"""Memory that is freed is used again, also by threads; counted in page faults of a real process."""

import subprocess
import sys

import pytest

from paperlab.heap import keep_freed_memory

PROGRAM = """
import ctypes, resource, sys, threading
from paperlab.heap import keep_freed_memory

print(keep_freed_memory({} if sys.argv[1] == "kept" else {"MALLOC_ARENA_MAX": "2"}))

def work():
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = library.malloc(ctypes.c_size_t(2**26))
        ctypes.memset(block, 1, 2**26)
        library.free(ctypes.c_void_p(block))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
faults = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(min(faults[1:]))
"""


def faults(how):
    """Whether the settings were made, and the page faults of touching 64 MB once more."""
    shown = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    made, count = shown.stdout.split()
    return made == "True", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator of glibc")
def test_what_was_freed_is_used_again():
    made, kept = faults("kept")
    if not made:
        pytest.skip("no glibc here, or an accelerator")
    left_alone, given_back = faults("given back")
    assert not left_alone
    assert kept < 100 < 5000 < given_back


def test_settings_of_the_user_are_left_alone():
    assert keep_freed_memory({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}) is False
