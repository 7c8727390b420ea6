"""WebRTC, pulled (WHEP) and pushed (WHIP)."""
