"""The models behind Ray Serve: protocol (what goes over the wire), deployments (what runs), application (wiring)."""
