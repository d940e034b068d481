"""The drawn world: scenes of real drawings by many hands, what is known of them, and the models trained on them."""
