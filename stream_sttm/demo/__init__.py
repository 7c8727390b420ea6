"""What the demonstration needs beyond the service: a camera that is really sent over the network, and a tiny model."""
