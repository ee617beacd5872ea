"""RARL: reasoning-aware reinforcement learning for medical vision-language models."""
