"""Read, audit for leaks, split by time."""
