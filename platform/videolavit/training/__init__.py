"""One training loop and its small collaborators. Plain PyTorch; nothing here knows of Ray."""
