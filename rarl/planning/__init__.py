"""What a configuration needs before it runs: memory part by part, seconds of a step, and how both
grow."""
