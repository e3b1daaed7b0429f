"""The process's memory: how much it has taken, and how it keeps what it has freed."""

import ctypes
import platform
import resource

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc, malloc.h


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks for the next tensor instead of returning them to the kernel.

    Tensors of tens of megabytes come and go at every layer; each was mapped anew, page by page.
    Does nothing where the C library is another.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            libc.mallopt(parameter, value)


def peak_memory_gb() -> float:
    """This process and its largest child, in GiB."""
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 2**20
