"""The trained adapters behind Ray Serve beside the judge, with a page for people. Every limit is
ours and is applied before anything reaches the engine."""
