"""From a grid to records: the plan, the runner and what it leaves behind."""
