"""Policy server and client: openpi's WebSocket protocol, sessions, batches, Ray Serve."""
