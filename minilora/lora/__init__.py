"""Low-rank adapters: configuration, targets, attaching, saving and loading."""
