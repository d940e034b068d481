"""The demo world: scenes of real drawings by many hands, and what is known of them."""
