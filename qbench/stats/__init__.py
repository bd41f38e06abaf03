"""Statistics of paired comparisons, on arrays alone: numpy and scipy, and nothing of ours."""
