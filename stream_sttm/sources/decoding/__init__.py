"""FFmpeg in processes of its own: what is decoded, by which process, and the time of each frame."""
