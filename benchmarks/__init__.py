"""How fast pgalloc is, beside the bare system calls and beside what else there is in Python."""
