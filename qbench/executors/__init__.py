"""Cells on other machines, by engines that exist: Ray, and Slurm through submitit."""
