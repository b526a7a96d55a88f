"""Memory of the process: activations are large, short-lived, and of other sizes in every NetAug step."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
LARGEST_BLOCK_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let the C allocator keep freed tensors for the next ones; return whether it does.

    By default glibc gives every block above 32 MiB back to the kernel, which clears it again page by page at
    the next allocation: on CPUs that is half of the time of a NetAug step. The process keeps its peak size.
    Only Linux with glibc needs it and has it; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK_BYTES) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
