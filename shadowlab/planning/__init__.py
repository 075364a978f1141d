"""What a run needs in memory, before anything is allocated."""
