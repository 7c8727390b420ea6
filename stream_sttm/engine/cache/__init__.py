"""The rolling KV cache of one stream."""
