"""Tests over several hosts."""
