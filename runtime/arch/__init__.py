"""What is known of each family of models: its attention layers, where they stand, how they are replaced."""
