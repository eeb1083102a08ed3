"""Service on Ray Serve: protocol (bodies of requests), deployments (replicas of the networks), application (graph)."""
