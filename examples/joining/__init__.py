"""``make demo-join``: engines join a fleet that serves."""
