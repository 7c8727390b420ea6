"""The machine: rolling memories and the answers read from them. Tensors only; time is passed in."""
