"""How far a judge can be trusted, measured: its card."""
