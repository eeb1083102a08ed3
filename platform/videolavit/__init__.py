"""Video-LaVIT as a platform: videos in, keyframe and motion tokens out, one language model over both."""
