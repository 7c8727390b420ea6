"""Answers, events and states on MQTT."""
