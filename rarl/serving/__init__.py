"""The trained adapters behind Ray Serve. Every limit is applied before the engine is reached."""
