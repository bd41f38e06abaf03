"""Models as they come: where they are found, how they are loaded, what their blocks are made of."""
