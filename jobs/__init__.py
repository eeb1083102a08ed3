"""Entry points: `python -m jobs.NAME`, `videolavit NAME`, `ray job submit -- python -m jobs.NAME`."""
