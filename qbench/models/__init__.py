"""Models as they come: where they are found, how they are loaded, and what their blocks consist of."""
