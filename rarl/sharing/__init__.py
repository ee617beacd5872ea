"""What leaves a run for other places: adapters to be merged, whole models, cards, uploads."""
