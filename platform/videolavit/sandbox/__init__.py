"""Work on foreign bytes in child processes that can neither harm nor tell."""
