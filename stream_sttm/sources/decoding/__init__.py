"""FFmpeg in processes of its own: what is decoded, by whom, and when each frame was."""
