"""Training: components, their data, and one loop for all of them. Plain PyTorch, without Ray."""
