"""Two threads write the same bytes without a lock: ThreadSanitizer must report it."""

import ctypes
import threading

libc = ctypes.CDLL(None)
buffer = ctypes.create_string_buffer(1 << 20)


def write() -> None:
    """Write the whole buffer again and again."""
    for _ in range(100):
        libc.memset(buffer, 0, len(buffer))


threads = [threading.Thread(target=write) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
