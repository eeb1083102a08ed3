"""Speed and memory, measured by hand and never inside the tests."""
