"""The engine: rolling memories, and the answers read from them. Tensors only. Time is passed in."""
