"""The MQTT sink: answers, events, states, and questions and commands that come in."""
