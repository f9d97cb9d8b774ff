def nanoseconds() -> float:
    """What one turn of GNU's OpenMP runtime takes while it waits: a load, a compare and, on x86, a PAUSE."""
