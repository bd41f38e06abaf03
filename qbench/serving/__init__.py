"""Saved models in the programs that serve them: the plug-in of vLLM."""
