"""A `Watch` where a library owns the loop. A module for each library, which alone imports it.

- `diagnostics.integrations.lightning.WatchCallback`: `Trainer(callbacks=[WatchCallback()])`.
- `diagnostics.integrations.transformers.WatchMixin`: `class WatchedTrainer(WatchMixin, Trainer)`.
- accelerate needs none: `Watch(model, optimizer, accelerator=accelerator)`.

Exports nothing itself: to import one must not load the other's library.
"""
