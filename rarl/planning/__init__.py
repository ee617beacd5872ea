"""What a configuration needs before it runs: memory part by part, and seconds of a step."""
